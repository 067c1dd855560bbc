//! Who calls: every call wants the bearer token, also health and reflection.

use std::sync::Arc;

use subtle::ConstantTimeEq;
use tonic::{Request, Status, service::Interceptor};

/// The caller, as far as the token tells. In every request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// For the audit log.
    pub actor: Arc<str>,
}

/// Lets through what shows the token.
#[derive(Clone)]
pub struct Auth {
    token: Arc<str>,
}

impl Auth {
    /// Wants this token.
    pub fn new(token: &str) -> Self {
        Self { token: token.into() }
    }
}

impl Interceptor for Auth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let shown = request.metadata().get("authorization").and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        // Compared in constant time, so that its bytes can't be guessed one after the other.
        if !shown.is_some_and(|shown| bool::from(shown.ct_eq(self.token.as_bytes()))) {
            return Err(Status::unauthenticated(
                "this call wants the coordinator's token in the metadata: `authorization: Bearer TOKEN`",
            ));
        }
        request.extensions_mut().insert(Caller { actor: "token".into() });
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_lets_a_call_through() {
        let shows = |value: Option<&str>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                request.metadata_mut().insert("authorization", value.parse().unwrap());
            }
            Auth::new("secret").call(request).map(|r| r.extensions().get::<Caller>().is_some())
        };
        assert!(matches!(shows(Some("Bearer secret")), Ok(true)));
        for wrong in [
            None,
            Some(""),
            Some("secret"),
            Some("Bearer "),
            Some("Bearer secre"),
            Some("Bearer secrets"),
            Some("bearer secret"),
        ] {
            assert_eq!(shows(wrong).unwrap_err().code(), tonic::Code::Unauthenticated, "{wrong:?}");
        }
    }
}
