//! Who answers a request: a generation named by the trusted proxy's header, by the body's
//! `adapter`, or by `model` = `<base>::<alias>`; the base if none is named.
//!
//! Invariant: the header wins over the body, because the proxy sets it after it has stripped the
//! client's own; and an unknown name is an error, never the base in disguise.

use hone_shared::turn::Generation;
use serde_json::Value;

use crate::error::{ApiError, Code};

/// Request and response header that carries a generation.
pub const HEADER: &str = "x-hone-generation";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Exactly this generation, or the base.
    Generation(Generation),
    /// Whatever the alias names at this moment.
    Alias(String),
}

/// The names that this engine knows.
pub struct Known<'a> {
    /// Name of the base model.
    pub base: &'a str,
    /// Aliases.
    pub aliases: &'a [String],
}

impl Known<'_> {
    /// Every model name that a client may ask for.
    pub fn models(&self) -> Vec<String> {
        let aliases = self.aliases.iter().map(|alias| format!("{}::{alias}", self.base));
        std::iter::once(self.base.to_owned()).chain(aliases).collect()
    }

    fn has(&self, alias: &str) -> bool {
        self.aliases.iter().any(|known| known == alias)
    }
}

/// Decides who answers.
///
/// # Errors
/// [`Code::ModelNotFound`] with the models that exist; [`Code::InvalidValue`] for a wrong form.
pub fn select(
    header: Option<&str>,
    adapter: &Value,
    model: Option<&str>,
    known: &Known,
) -> Result<Selection, ApiError> {
    let by_model = by_model(model, known, header.is_some())?;
    if let Some(header) = header {
        return generation(header, HEADER).map(Selection::Generation);
    }
    let named = match adapter {
        Value::Null => return Ok(by_model),
        Value::String(alias) => Some(Selection::Alias(alias.clone())),
        Value::Object(map) => match map.get("generation") {
            Some(Value::String(text)) => {
                Some(Selection::Generation(generation(text, "adapter.generation")?))
            }
            _ => None,
        },
        _ => None,
    };
    match named {
        Some(Selection::Alias(alias)) if !known.has(&alias) => Err(unknown(&alias, known)),
        Some(selection) => Ok(selection),
        None => {
            let form = "`adapter` must be an alias or {\"generation\": \"<64 hex digits>\"}";
            Err(ApiError::value("adapter", form))
        }
    }
}

fn by_model(model: Option<&str>, known: &Known, pinned: bool) -> Result<Selection, ApiError> {
    let base = Selection::Generation(Generation::base());
    let Some(model) = model.filter(|model| *model != known.base) else { return Ok(base) };
    match model.split_once("::") {
        Some((prefix, _)) if prefix == known.base && pinned => Ok(base),
        Some((prefix, alias)) if prefix == known.base && known.has(alias) => {
            Ok(Selection::Alias(alias.to_owned()))
        }
        None if known.has(model) => Ok(Selection::Alias(model.to_owned())),
        _ => Err(unknown(model, known)),
    }
}

fn generation(text: &str, param: &str) -> Result<Generation, ApiError> {
    Generation::parse(text).map_err(|error| ApiError::value(param, error.to_string()))
}

fn unknown(name: &str, known: &Known) -> ApiError {
    let shown: String = name.chars().take(200).collect();
    let models = known.models().join("`, `");
    let message = format!("The model `{shown}` does not exist. This engine serves `{models}`.");
    ApiError::of(Code::ModelNotFound, "model", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(
        header: Option<&str>,
        adapter: Value,
        model: Option<&str>,
    ) -> Result<Selection, ApiError> {
        let aliases = ["main".to_owned()];
        select(header, &adapter, model, &Known { base: "smol", aliases: &aliases })
    }

    fn base() -> Selection {
        Selection::Generation(Generation::base())
    }

    fn alias() -> Selection {
        Selection::Alias("main".to_owned())
    }

    #[test]
    fn the_base_answers_when_nothing_else_is_named() {
        assert_eq!(ask(None, Value::Null, None).unwrap(), base());
        assert_eq!(ask(None, Value::Null, Some("smol")).unwrap(), base());
    }

    #[test]
    fn an_alias_is_chosen_by_model_or_by_adapter() {
        assert_eq!(ask(None, Value::Null, Some("smol::main")).unwrap(), alias());
        assert_eq!(ask(None, Value::Null, Some("main")).unwrap(), alias());
        assert_eq!(ask(None, json!("main"), Some("smol")).unwrap(), alias());
    }

    #[test]
    fn the_header_wins_over_the_body() {
        let hash = "a".repeat(64);
        let pinned = ask(Some(&hash), json!("main"), Some("smol::main")).unwrap();
        assert_eq!(pinned, Selection::Generation(Generation::parse(&hash).unwrap()));
        assert_eq!(ask(Some("base"), Value::Null, Some("smol::main")).unwrap(), base());
        assert_eq!(ask(Some("base"), Value::Null, Some("smol::other")).unwrap(), base());
        assert_eq!(ask(Some("junk"), Value::Null, None).unwrap_err().code, Code::InvalidValue);
    }

    #[test]
    fn a_generation_is_chosen_by_its_hash() {
        let hash = "b".repeat(64);
        let chosen = ask(None, json!({"generation": hash}), None).unwrap();
        assert_eq!(chosen, Selection::Generation(Generation::parse(&hash).unwrap()));
    }

    #[test]
    fn an_unknown_model_is_told_which_models_exist() {
        for model in ["gpt-4", "other::main", "smol::nope"] {
            let error = ask(None, Value::Null, Some(model)).unwrap_err();
            assert_eq!(error.code, Code::ModelNotFound);
            assert!(error.message.contains("`smol`, `smol::main`"), "{}", error.message);
        }
        assert_eq!(ask(None, json!("nope"), None).unwrap_err().code, Code::ModelNotFound);
        assert_eq!(ask(None, json!(7), None).unwrap_err().code, Code::InvalidValue);
    }
}
