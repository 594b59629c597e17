//! The little of the DevTools protocol that is needed: a command and its answer.
//!
//! Invariant: one command at a time; events are read past; every command has a deadline.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::environment::EnvironmentError;

/// For one command; a page of ours answers in milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// Largest message: a screenshot.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

fn failed(why: impl ToString) -> EnvironmentError {
    EnvironmentError::Browser(why.to_string())
}

/// A connection to the browser, and the page that commands are for.
#[derive(Debug)]
pub struct Devtools {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last: u64,
    page: Option<String>,
}

impl Devtools {
    /// Connects to the `ws://` URL that the browser printed.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn connect(url: &str) -> Result<Self, EnvironmentError> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let connect = tokio_tungstenite::connect_async_with_config(url, Some(config), false);
        let connected = tokio::time::timeout(DEADLINE, connect).await.map_err(failed)?;
        let (socket, _) = connected.map_err(failed)?;
        Ok(Self { socket, last: 0, page: None })
    }

    /// Sends later commands to this page's session; `None`: to the browser.
    pub fn attach(&mut self, session: Option<&str>) {
        self.page = session.map(str::to_owned);
    }

    /// Sends a command; its result.
    ///
    /// # Errors
    /// The browser refuses, is silent, or is gone.
    pub async fn command(
        &mut self,
        method: &str,
        parameters: Value,
    ) -> Result<Value, EnvironmentError> {
        self.last += 1;
        let id = self.last;
        let mut command = json!({ "id": id, "method": method, "params": parameters });
        if let Some(page) = &self.page {
            command["sessionId"] = page.clone().into();
        }
        let answer = async {
            self.socket.send(Message::text(command.to_string())).await.map_err(failed)?;
            while let Some(message) = self.socket.next().await {
                let Message::Text(text) = message.map_err(failed)? else { continue };
                let answer: Value = serde_json::from_str(text.as_str()).map_err(failed)?;
                if answer["id"] == id {
                    return Ok(answer);
                }
            }
            Err(failed("the browser closed the connection"))
        };
        let late = |_| failed(format!("{method} was not answered in time"));
        let mut answer = tokio::time::timeout(DEADLINE, answer).await.map_err(late)??;
        match answer.get("error") {
            Some(error) => Err(failed(format!("{method}: {}", error["message"]))),
            None => Ok(answer["result"].take()),
        }
    }
}
