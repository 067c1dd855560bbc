//! Streams that are made as they are read: between two messages nothing runs and nothing is queued,
//! so that a client that never reads costs the state of its stream and no more.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio_stream::Stream;
use tonic::Status;

/// A server's stream.
pub type Pull<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The stream of what `step` gives, one message and the next state after the other, until it gives
/// none or fails.
pub fn pull<S, T, F, Fut>(state: S, step: F) -> Pull<T>
where
    S: Send + Unpin + 'static,
    T: 'static,
    F: FnMut(S) -> Fut + Send + Unpin + 'static,
    Fut: Future<Output = Result<Option<(T, S)>, Status>> + Send + 'static,
{
    Box::pin(Steps { state: Some(state), running: None, step })
}

struct Steps<S, F, Fut> {
    /// Between two steps.
    state: Option<S>,
    /// During one.
    running: Option<Pin<Box<Fut>>>,
    step: F,
}

impl<S, T, F, Fut> Stream for Steps<S, F, Fut>
where
    S: Unpin,
    F: FnMut(S) -> Fut + Unpin,
    Fut: Future<Output = Result<Option<(T, S)>, Status>>,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(state) = this.state.take() {
            this.running = Some(Box::pin((this.step)(state)));
        }
        let Some(running) = &mut this.running else { return Poll::Ready(None) };
        let done = ready!(running.as_mut().poll(cx));
        this.running = None;
        Poll::Ready(match done {
            Ok(Some((item, next))) => {
                this.state = Some(next);
                Some(Ok(item))
            }
            Ok(None) => None,
            Err(status) => Some(Err(status)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn a_stream_gives_its_steps_and_ends_with_the_first_failure() {
        let counts = pull(0, |n| async move { Ok((n < 3).then_some((n, n + 1))) });
        assert_eq!(counts.map(Result::unwrap).collect::<Vec<_>>().await, [0, 1, 2]);
        let mut fails = pull((), |()| async move { Err::<Option<((), ())>, _>(Status::internal("no")) });
        assert!(fails.next().await.unwrap().is_err());
        assert!(fails.next().await.is_none());
        assert!(fails.next().await.is_none(), "again the same end");
    }
}
