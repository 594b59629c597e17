//! An engine that plays a script: it answers each request as the exchange says whose number the
//! request carries, and keeps what it saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::exchange::{Exchange, NUMBER};
use crate::wire::{Message, Wire};

type Script = Arc<BTreeMap<u64, Exchange>>;
type Seen = Arc<Mutex<BTreeMap<u64, Vec<Message>>>>;

/// The engine.
pub struct Engine {
    pub address: SocketAddr,
    seen: Seen,
}

impl Engine {
    pub async fn start(exchanges: &[Exchange]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script: BTreeMap<_, _> = exchanges.iter().map(|e| (e.number, e.clone())).collect();
        let (script, seen) = (Arc::new(script), Seen::default());
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(Wire::new(tcp), Arc::clone(&script), Arc::clone(&all)));
            }
        });
        Self { address, seen }
    }

    /// What arrived since the last call, by exchange; more than one request each is a defect.
    pub fn take_seen(&self) -> BTreeMap<u64, Vec<Message>> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

async fn serve(mut wire: Wire, script: Script, seen: Seen) {
    while let Some(mut request) = wire.request_head().await {
        let number = request.field(NUMBER).map(|v| String::from_utf8_lossy(v).into_owned());
        let number = number.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        let Some(exchange) = script.get(&number) else {
            seen.lock().unwrap().entry(u64::MAX).or_default().push(request);
            return;
        };
        if wire.write(exchange.reply.interim.as_bytes()).await.is_err() {
            return;
        }
        wire.request_body(&mut request).await;
        seen.lock().unwrap().entry(number).or_default().push(request);
        let (writes, ends) = exchange.reply_writes();
        for (at, bytes) in writes.iter().enumerate() {
            if at > 0 {
                pause(exchange.reply.pause_ms).await;
            }
            if wire.write(bytes).await.is_err() {
                return;
            }
        }
        if ends {
            // Whoever reads until the end must see it; a reset would throw away what is on the way.
            wire.finish().await;
            let _ = tokio::time::timeout(Duration::from_secs(1), wire.at_end()).await;
            return;
        }
    }
}

/// Lets others run, for a time or only once.
pub async fn pause(ms: u64) {
    match ms {
        0 => tokio::task::yield_now().await,
        _ => tokio::time::sleep(Duration::from_millis(ms)).await,
    }
}

/// A connection to `address`.
pub async fn connect(address: SocketAddr) -> Wire {
    Wire::new(TcpStream::connect(address).await.unwrap())
}
