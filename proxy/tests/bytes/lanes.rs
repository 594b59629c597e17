//! Clients: each lane is one keep-alive connection that asks exchange after exchange.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;

use crate::engine::{connect, pause};
use crate::exchange::Exchange;
use crate::wire::{Message, Wire};

/// How long one exchange may take before the test fails with its number.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client got.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Got {
    pub interim: Vec<Message>,
    pub last: Message,
}

/// Asks all exchanges over `lanes` connections; the answers in the order of the exchanges.
pub async fn ask_all(address: SocketAddr, exchanges: &[Exchange], lanes: usize) -> Vec<Got> {
    let lane = |first: usize| async move {
        let (mut wire, mut got) = (None, Vec::new());
        for exchange in exchanges.iter().skip(first).step_by(lanes) {
            let asked = ask(address, &mut wire, exchange);
            let Ok(answer) = tokio::time::timeout(PATIENCE, asked).await else {
                panic!("no answer to exchange {} from {address}: {exchange:?}", exchange.number);
            };
            got.push(answer);
        }
        got
    };
    let mut by_lane: Vec<_> = join_all((0..lanes).map(lane)).await;
    let mut order = Vec::with_capacity(exchanges.len());
    by_lane.iter_mut().for_each(|lane| lane.reverse());
    for at in 0..exchanges.len() {
        order.push(by_lane[at % lanes].pop().unwrap());
    }
    order
}

async fn ask(address: SocketAddr, wire: &mut Option<Wire>, exchange: &Exchange) -> Got {
    let mut on = match wire.take() {
        Some(wire) => wire,
        None => connect(address).await,
    };
    let mut got = Got::default();
    for (at, bytes) in exchange.request_writes().iter().enumerate() {
        if at > 0 && exchange.expects {
            got.interim.push(on.response(exchange.method).await);
        } else if at > 0 {
            pause(0).await;
        }
        if on.write(bytes).await.is_err() {
            break; // Refused early; the answer says why.
        }
    }
    loop {
        let message = on.response(exchange.method).await;
        if (100..200).contains(&message.status()) {
            got.interim.push(message);
            continue;
        }
        got.last = message;
        if got.last.keeps_alive() && !exchange.http10 {
            *wire = Some(on);
        }
        return got;
    }
}
