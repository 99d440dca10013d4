//! How others reach the running agent: a queue that it looks at between two ticks.

use tokio::sync::{mpsc, oneshot};

use crate::knobs_request::{KnobsAnswer, KnobsRequest};
use crate::orders::{Answer, Order};

/// Requests that may wait; one more is refused.
const CALLS_MAX: usize = 8;
/// Of these, places that no settings over HTTP may take: an operator's order always finds one.
const KEPT_FOR_ORDERS: usize = 4;

/// What is asked, and where the answer goes.
#[derive(Debug)]
pub enum Request {
    /// An operator's order.
    Order(Order, oneshot::Sender<Answer>),
    /// Options that a person sets.
    Knobs(Box<KnobsRequest>, oneshot::Sender<KnobsAnswer>),
}

/// The asking end.
#[derive(Debug, Clone)]
pub struct Call(mpsc::Sender<Request>);

/// The agent's end.
pub type Calls = mpsc::Receiver<Request>;

impl Call {
    /// A queue's two ends.
    #[must_use]
    pub fn queue() -> (Self, Calls) {
        let (asking, asked) = mpsc::channel(CALLS_MAX);
        (Self(asking), asked)
    }

    /// Asks for an order to be carried out; `None` where too many wait, or the agent has ended.
    pub async fn order(&self, order: Order) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Request::Order(order, reply)).ok()?;
        answer.await.ok()
    }

    /// Asks for options to be set; `None` as for [`Call::order`].
    pub async fn knobs(&self, request: KnobsRequest) -> Option<KnobsAnswer> {
        if self.0.capacity() <= KEPT_FOR_ORDERS {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Request::Knobs(Box::new(request), reply)).ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn an_order_finds_a_place_beside_a_flood() {
        let (call, _calls) = Call::queue();
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = Vec::new();
        for number in 0..20 {
            let call = call.clone();
            let mut asked = Box::pin(async move { call.knobs(KnobsRequest::default()).await });
            let is_refused = matches!(asked.as_mut().poll(&mut context), Poll::Ready(None));
            assert_eq!(is_refused, number >= CALLS_MAX - KEPT_FOR_ORDERS, "{number}");
            waiting.push(asked);
        }
        let order = pin!(call.order(Order::Pause));
        assert!(order.poll(&mut context).is_pending(), "it waits for the agent");
    }
}
