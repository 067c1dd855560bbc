//! Who calls: every call but health and reflection wants the bearer token.

use std::{sync::Arc, task};

use subtle::ConstantTimeEq;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response, header::AUTHORIZATION},
};
use tower::{Layer, Service};

/// The caller, as far as the token tells. In every request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// For the audit log.
    pub actor: Arc<str>,
}

/// Lets through what shows the token, and what needs none.
#[derive(Clone)]
pub struct Auth {
    token: Arc<str>,
}

impl Auth {
    /// Wants this token.
    pub fn new(token: &str) -> Self {
        Self { token: token.into() }
    }

    /// Compared in constant time, so that its bytes can't be guessed one after the other.
    fn admits<B>(&self, request: &Request<B>) -> bool {
        let shown = request.headers().get(AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|shown| bool::from(shown.ct_eq(self.token.as_bytes())))
    }
}

/// Calls that tell nothing of a namespace.
fn is_public(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/") || path.starts_with("/grpc.reflection.")
}

impl<S> Layer<S> for Auth {
    type Service = Checked<S>;
    fn layer(&self, inner: S) -> Checked<S> {
        Checked { auth: self.clone(), inner }
    }
}

/// A service behind the check.
#[derive(Clone)]
pub struct Checked<S> {
    auth: Auth,
    inner: S,
}

impl<S, B> Service<Request<B>> for Checked<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Reply<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if is_public(request.uri().path()) {
            return Reply::Inner(self.inner.call(request));
        }
        if !self.auth.admits(&request) {
            let status = Status::unauthenticated(
                "this call wants the coordinator's token in the metadata: `authorization: Bearer TOKEN`",
            );
            return Reply::Refused(Some(status));
        }
        request.extensions_mut().insert(Caller { actor: "token".into() });
        Reply::Inner(self.inner.call(request))
    }
}

/// The inner service's answer, or a refusal.
pub enum Reply<F> {
    /// The call goes on.
    Inner(F),
    /// It does not.
    Refused(Option<Status>),
}

impl<F, E> Future for Reply<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
{
    type Output = F::Output;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<F::Output> {
        match &mut *self {
            Self::Inner(inner) => std::pin::Pin::new(inner).poll(cx),
            Self::Refused(status) => {
                let status = status.take().unwrap_or_else(|| Status::unauthenticated("refused"));
                task::Poll::Ready(Ok(status.into_http()))
            }
        }
    }
}
