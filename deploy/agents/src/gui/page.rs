//! The page: a form that is served on this machine, and what was really sent with it.
//!
//! Invariant: whether a task is solved is decided by the request that the browser sent, not by
//! what the page shows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::environment::{EnvironmentError, io};

/// Largest request of the page, bytes.
const BODY_BYTES_MAX: usize = 4_096;

/// A form: elements in order, and what sending it takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sheet {
    /// `textbox`, `checkbox` or `button`, and the label.
    pub elements: Vec<(&'static str, &'static str)>,
    /// The button that sends.
    pub sends: &'static str,
    /// What must be filled in: labels and values (`on` for check boxes).
    pub wanted: BTreeMap<&'static str, String>,
}

impl Sheet {
    fn html(&self, task: u64) -> String {
        let element = |(role, label): &(&str, &str)| match *role {
            "textbox" => format!("<p><label>{label} <input name='{label}'></label></p>"),
            "checkbox" => {
                format!("<p><label><input type=checkbox name='{label}'> {label}</label></p>")
            }
            _ => format!("<p><button type=button>{label}</button></p>"),
        };
        let elements: String = self.elements.iter().map(element).collect();
        format!(
            "<!doctype html><meta charset=utf-8><title>Form</title><form>{elements}</form>\
             <p role=status></p><script>\
             window.waiting = 0;\
             document.querySelectorAll('button').forEach(button => button.onclick = async () => {{\
               const fields = {{}};\
               document.querySelectorAll('input').forEach(input => fields[input.name] =\
                 input.type === 'checkbox' ? (input.checked ? 'on' : '') : input.value);\
               window.waiting++;\
               const sent = await fetch('/press/{task}', {{ method: 'POST',\
                 headers: {{ 'content-type': 'application/json' }},\
                 body: JSON.stringify({{ button: button.innerText, fields }}) }});\
               document.querySelector('[role=status]').innerText = (await sent.json()).status;\
               window.waiting--;\
             }});</script>"
        )
    }

    /// What pressing a button does: the status line, and whether the form was sent.
    fn press(&self, pressed: &Pressed) -> (String, bool) {
        if pressed.button != self.sends {
            return (format!("{}: nothing was sent.", pressed.button), false);
        }
        let missing = self
            .wanted
            .iter()
            .find(|(label, value)| pressed.fields.get(**label).is_none_or(|found| found != *value));
        match missing {
            Some((label, _)) => (format!("Error: {label} is not right."), false),
            None => ("The form was sent.".to_owned(), true),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Pressed {
    button: String,
    fields: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Shown {
    task: u64,
    sheet: Sheet,
    sent: bool,
}

type Shared = Arc<Mutex<Shown>>;

/// The server; ends with this guard.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    shown: Shared,
    serving: JoinHandle<()>,
}

impl Site {
    /// Serves on a free port of this machine.
    ///
    /// # Errors
    /// There is none.
    pub async fn start() -> Result<Self, EnvironmentError> {
        let shown = Shared::default();
        let router = Router::new()
            .route("/task/{task}", get(page))
            .route("/press/{task}", post(press))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(Arc::clone(&shown));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(io("a port for the page"))?;
        let address = listener.local_addr().map_err(io("a port for the page"))?;
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shown, serving })
    }

    /// Shows a new form; its URL.
    pub fn show(&self, sheet: Sheet) -> String {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let task = shown.task + 1;
        *shown = Shown { task, sheet, sent: false };
        format!("http://{}/task/{task}", self.address)
    }

    /// Whether the form was sent, rightly filled in.
    pub fn sent(&self) -> bool {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).sent
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn page(
    State(shown): State<Shared>,
    Path(task): Path<u64>,
) -> Result<Html<String>, StatusCode> {
    let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    if shown.task == task { Ok(Html(shown.sheet.html(task))) } else { Err(StatusCode::NOT_FOUND) }
}

async fn press(
    State(shown): State<Shared>,
    Path(task): Path<u64>,
    Json(pressed): Json<Pressed>,
) -> Result<Json<Value>, StatusCode> {
    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    if shown.task != task {
        return Err(StatusCode::NOT_FOUND);
    }
    let (status, sent) = shown.sheet.press(&pressed);
    shown.sent |= sent;
    Ok(Json(json!({ "status": status })))
}
