//! The HTTP face: routes, the state behind them, and the life of the server.
//!
//! `/health` answers from the first moment on, with 503 until the base and the aliases of the
//! registry are loaded. Everything else answers 503 `engine_loading` until then.
//!
//! Invariant: every response of an inference route carries `x-hone-generation`.

pub mod adapters;
pub mod admit;
pub mod chat;
pub mod completions;
pub mod infer;
pub mod models;
pub mod sse;

use std::future::IntoFuture;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use hone_shared::clock::now_ms;
use hone_shared::registry::Registry;
use hone_shared::turn::Generation;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::BackendConfig;
use crate::error::{ApiError, BackendError, Code};
use crate::fleet::Fleet;
use admit::Admission;

/// What every handler sees.
pub struct App {
    /// The settings.
    pub config: BackendConfig,
    /// The engines, once the base is loaded and the aliases are preloaded.
    fleet: OnceLock<Arc<Fleet>>,
    /// Who may generate now.
    pub admission: Admission,
    /// When the process started, seconds since 1970.
    pub started_s: i64,
}

impl App {
    /// The engines.
    ///
    /// # Errors
    /// [`Code::EngineLoading`] until they are ready.
    pub fn fleet(&self) -> Result<&Arc<Fleet>, ApiError> {
        self.fleet.get().ok_or_else(|| {
            ApiError::new(Code::EngineLoading, "The engine is loading the model; try again.")
        })
    }
}

/// Serves on `config.listen` until `shutdown`, then lets running requests end.
///
/// # Errors
/// The settings, the address, the model directory or the engine are unusable.
pub async fn run(config: BackendConfig, shutdown: CancellationToken) -> Result<(), BackendError> {
    let address = config.listen.to_string();
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| BackendError::Listen { address, source })?;
    serve(config, listener, shutdown).await
}

/// As [`run`], on a listener that is bound already.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    config: BackendConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), BackendError> {
    config.check()?;
    let app = Arc::new(App {
        admission: Admission::new(&config),
        fleet: OnceLock::new(),
        started_s: now_ms() / 1000,
        config,
    });
    let stop = shutdown.child_token();
    let server = axum::serve(listener, router(Arc::clone(&app)))
        .with_graceful_shutdown(stop.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    let outcome = match shutdown.run_until_cancelled(load(&app)).await {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(fleet)) => {
            // Supervises until the shutdown, in the place of this function.
            fleet.supervise(shutdown.clone()).await;
            Ok(())
        }
    };
    stop.cancel();
    let abort = server.abort_handle();
    let grace = Duration::from_millis(app.config.grace_ms);
    if outcome.is_err() || tokio::time::timeout(grace, server).await.is_err() {
        abort.abort();
    }
    outcome
}

async fn load(app: &App) -> Result<Arc<Fleet>, BackendError> {
    let fleet = Fleet::start(app.config.clone()).await?;
    fleet.preload(registry_aliases(&app.config)).await;
    let _ = app.fleet.set(Arc::clone(&fleet));
    tracing::info!(model = app.config.model_id, "the engine is ready");
    Ok(fleet)
}

fn registry_aliases(config: &BackendConfig) -> Vec<(String, Generation)> {
    let Some(dir) = &config.registry else { return Vec::new() };
    match Registry::open(dir).and_then(|registry| registry.aliases()) {
        Ok(aliases) => aliases.into_iter().map(|(name, state)| (name, state.generation)).collect(),
        Err(error) => {
            tracing::error!(%error, "the registry's aliases cannot be read; none is preloaded");
            Vec::new()
        }
    }
}

fn router(app: Arc<App>) -> Router {
    let limit = DefaultBodyLimit::max(app.config.body_bytes_max);
    Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/v1/lora_adapters", get(adapters::list))
        .route("/health", get(models::health))
        .method_not_allowed_fallback(wrong_method)
        .fallback(wrong_path)
        .layer(limit)
        .with_state(app)
}

async fn wrong_method() -> ApiError {
    ApiError::new(Code::MethodNotAllowed, "This path does not serve this method.")
}

async fn wrong_path(uri: http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(Code::NotFound, format!("There is no `{path}` here."))
}
