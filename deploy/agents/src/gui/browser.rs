//! Headless Chromium: one process, a context of its own for every task, pages read as their
//! accessibility tree, real mouse and keyboard events.
//!
//! Invariants: the browser resolves no name and its profile is a temporary directory; it ends with
//! this guard.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::cdp::Devtools;
use crate::environment::{EnvironmentError, io};
use crate::sandbox::is_root;

/// Programs that may be Chromium.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// For the browser to start.
const START: Duration = Duration::from_secs(60);
/// Most elements of a page that are shown.
const ELEMENTS_MAX: usize = 40;
/// Longest name or value of an element, characters.
const CHARS_MAX: usize = 80;

/// An element that can be used, as an accessibility tree tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// `textbox`, `button`, `checkbox`, or another role.
    pub role: String,
    /// Its name.
    pub name: String,
    /// Its value: the text of a text box, `on` or `off` of a check box.
    pub value: Option<String>,
    node: i64,
}

/// What is on a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Elements that can be used, in order.
    pub elements: Vec<Element>,
    /// The text of the status line.
    pub status: String,
}

/// A running browser with one page.
#[derive(Debug)]
pub struct Browser {
    devtools: Devtools,
    context: Option<String>,
    _process: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts Chromium.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start() -> Result<Self, EnvironmentError> {
        let profile = tempfile::Builder::new()
            .prefix("hone-agents-browser-")
            .tempdir()
            .map_err(io("a browser profile"))?;
        for program in PROGRAMS {
            let mut command = Command::new(program);
            command.args(["--headless=new", "--remote-debugging-port=0", "--no-first-run"]);
            command.args(["--disable-gpu", "--disable-extensions", "--disable-sync"]);
            command.args(["--disable-background-networking", "--disable-component-update"]);
            command.args(["--disable-dev-shm-usage", "--window-size=800,600"]);
            command.arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1");
            if is_root() {
                // Chromium refuses to run as root with its own sandbox.
                command.arg("--no-sandbox");
            }
            command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            match command.kill_on_drop(true).spawn() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(EnvironmentError::Io { what: "chromium", source }),
                Ok(process) => return Self::attach(process, profile).await,
            }
        }
        let why = "chromium is not installed (Debian: apt-get install chromium)";
        Err(EnvironmentError::Missing(why.into()))
    }

    async fn attach(mut process: Child, profile: TempDir) -> Result<Self, EnvironmentError> {
        let failed = |why: &str| EnvironmentError::Browser(why.to_owned());
        let stderr = process.stderr.take().ok_or_else(|| failed("no standard error"))?;
        let mut lines = BufReader::new(stderr).lines();
        let url = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    return Some(url.trim().to_owned());
                }
            }
            None
        };
        let url = tokio::time::timeout(START, url).await.ok().flatten();
        let url = url.ok_or_else(|| failed("chromium did not start"))?;
        // Keep reading, so that it never writes into a full pipe; ends with the process.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let devtools = Devtools::connect(&url).await?;
        Ok(Self { devtools, context: None, _process: process, _profile: profile })
    }

    /// Opens a page in a context of its own; what was open before is closed.
    ///
    /// # Errors
    /// As of [`Devtools::command`].
    pub async fn open(&mut self, url: &str) -> Result<(), EnvironmentError> {
        self.devtools.attach(None);
        if let Some(context) = self.context.take() {
            let parameters = json!({ "browserContextId": context });
            self.devtools.command("Target.disposeBrowserContext", parameters).await?;
        }
        let made = self.devtools.command("Target.createBrowserContext", json!({})).await?;
        let context = made["browserContextId"].as_str().unwrap_or_default().to_owned();
        let parameters = json!({ "url": "about:blank", "browserContextId": context });
        let target = self.devtools.command("Target.createTarget", parameters).await?;
        self.context = Some(context);
        let parameters = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.devtools.command("Target.attachToTarget", parameters).await?;
        self.devtools.attach(attached["sessionId"].as_str());
        self.devtools.command("Accessibility.enable", json!({})).await?;
        self.devtools.command("Page.navigate", json!({ "url": url })).await?;
        self.settle().await
    }

    /// Waits until the page is loaded and its own requests are answered.
    async fn settle(&mut self) -> Result<(), EnvironmentError> {
        // The page counts its requests; two frames let what they changed be laid out.
        let script = "new Promise(done => { const look = () => \
            document.readyState === 'complete' && !window.waiting \
            ? requestAnimationFrame(() => setTimeout(done, 0)) : setTimeout(look, 10); look(); })";
        let parameters = json!({ "expression": script, "awaitPromise": true });
        self.devtools.command("Runtime.evaluate", parameters).await.map(drop)
    }

    /// Reads the page.
    ///
    /// # Errors
    /// As of [`Devtools::command`].
    pub async fn view(&mut self) -> Result<View, EnvironmentError> {
        let tree = self.devtools.command("Accessibility.getFullAXTree", json!({})).await?;
        let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
        let elements = nodes.iter().filter_map(element).take(ELEMENTS_MAX).collect();
        let script = "(document.querySelector('[role=status]') || {}).innerText || ''";
        let said =
            self.devtools.command("Runtime.evaluate", json!({ "expression": script })).await?;
        let status = shorten(said["result"]["value"].as_str().unwrap_or_default());
        Ok(View { elements, status })
    }

    /// Clicks the middle of an element.
    ///
    /// # Errors
    /// As of [`Devtools::command`], also when the element is gone.
    pub async fn click(&mut self, element: &Element) -> Result<(), EnvironmentError> {
        let node = json!({ "backendNodeId": element.node });
        self.devtools.command("DOM.scrollIntoViewIfNeeded", node.clone()).await?;
        let quads = self.devtools.command("DOM.getContentQuads", node).await?;
        let quad: Vec<f64> = quads["quads"][0]
            .as_array()
            .map_or_else(Vec::new, |quad| quad.iter().filter_map(Value::as_f64).collect());
        let [x0, y0, _, _, x1, y1, ..] = quad[..] else {
            return Err(EnvironmentError::Browser("the element has no place on the page".into()));
        };
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": f64::midpoint(x0, x1),
                "y": f64::midpoint(y0, y1), "button": "left", "clickCount": 1 });
            self.devtools.command("Input.dispatchMouseEvent", event).await?;
        }
        self.settle().await
    }

    /// Replaces the text of an element by keyboard.
    ///
    /// # Errors
    /// As of [`Self::click`].
    pub async fn fill(&mut self, element: &Element, text: &str) -> Result<(), EnvironmentError> {
        self.click(element).await?;
        let all = json!({ "type": "keyDown", "commands": ["selectAll"] });
        self.devtools.command("Input.dispatchKeyEvent", all).await?;
        self.devtools.command("Input.insertText", json!({ "text": text })).await?;
        self.settle().await
    }

    /// A screenshot, as a `data:` URL.
    ///
    /// # Errors
    /// As of [`Devtools::command`].
    pub async fn screenshot(&mut self) -> Result<String, EnvironmentError> {
        let parameters = json!({ "format": "jpeg", "quality": 40 });
        let shot = self.devtools.command("Page.captureScreenshot", parameters).await?;
        Ok(format!("data:image/jpeg;base64,{}", shot["data"].as_str().unwrap_or_default()))
    }
}

/// A node that can be used.
fn element(node: &Value) -> Option<Element> {
    let role = node["role"]["value"].as_str().unwrap_or_default();
    if node["ignored"] == true || !["textbox", "button", "checkbox", "link"].contains(&role) {
        return None;
    }
    let properties = node["properties"].as_array();
    let property = |name: &str| {
        properties?.iter().find(|p| p["name"] == name).map(|p| p["value"]["value"].clone())
    };
    let value = match role {
        "textbox" => Some(shorten(node["value"]["value"].as_str().unwrap_or_default())),
        "checkbox" => {
            let on = property("checked").is_some_and(|state| state == "true" || state == true);
            Some(if on { "on" } else { "off" }.to_owned())
        }
        _ => None,
    };
    Some(Element {
        role: role.to_owned(),
        name: shorten(node["name"]["value"].as_str().unwrap_or_default()),
        value,
        node: node["backendDOMNodeId"].as_i64()?,
    })
}

fn shorten(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(CHARS_MAX).collect()
}
