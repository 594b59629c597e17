//! A pingora proxy that does nothing else, for comparison.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::prelude::*;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use tokio::net::TcpListener;

struct Plain(SocketAddr);

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

/// Starts one in front of `upstream`, until the runtime ends.
pub async fn start(upstream: SocketAddr) -> SocketAddr {
    let proxy = Arc::new(http_proxy(&Arc::new(ServerConf::default()), Plain(upstream)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_never, shutdown) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let _never = _never;
        while let Ok((tcp, _)) = listener.accept().await {
            let (proxy, shutdown) = (Arc::clone(&proxy), shutdown.clone());
            let stream = pingora::protocols::l4::stream::Stream::from(tcp);
            tokio::spawn(async move { proxy.process_new(Box::new(stream), &shutdown).await });
        }
    });
    address
}
