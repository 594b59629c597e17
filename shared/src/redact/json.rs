//! Redaction inside JSON: every string and every key, also of JSON that stands in a string.
//!
//! Invariant: what needs no change is left byte for byte as it is; the depth is that of the parser.

use serde_json::{Map, Value};

use super::secrets::{is_secret_name, is_secret_value};
use super::{Counts, Redactor, Side};

impl Redactor {
    /// Whether [`Redactor::value`] would change anything: what holds nothing to redact, as most
    /// messages do, need not be copied before it is redacted.
    pub fn finds(&self, side: Side, value: &Value) -> bool {
        let none = &mut Counts::new();
        match value {
            Value::String(text) => self.string(side, text, none).is_some(),
            Value::Array(items) => items.iter().any(|item| self.finds(side, item)),
            Value::Object(map) => map.iter().any(|(key, value)| {
                self.by_key(side, key, value, none).is_some()
                    || self.finds(side, value)
                    || self.text(side, key, none).is_some()
            }),
            _ => false,
        }
    }

    /// Redacts all strings and keys of a value in place. Returns whether anything changed.
    pub fn value(&self, side: Side, value: &mut Value, counts: &mut Counts) -> bool {
        match value {
            Value::String(text) => match self.string(side, text, counts) {
                Some(redacted) => {
                    *text = redacted;
                    true
                }
                None => false,
            },
            Value::Array(items) => {
                items.iter_mut().fold(false, |any, item| self.value(side, item, counts) | any)
            }
            Value::Object(map) => self.object(side, map, counts),
            _ => false,
        }
    }

    fn object(&self, side: Side, map: &mut Map<String, Value>, counts: &mut Counts) -> bool {
        let mut changed = false;
        for (key, value) in map.iter_mut() {
            changed |= match self.by_key(side, key, value, counts) {
                Some(replaced) => {
                    *value = replaced;
                    true
                }
                None => self.value(side, value, counts),
            };
        }
        // Keys last: renaming rebuilds the map, and is rare.
        let renamed: Vec<(String, String)> = map
            .keys()
            .filter_map(|key| Some((key.clone(), self.text(side, key, counts)?)))
            .collect();
        if renamed.is_empty() {
            return changed;
        }
        let old = std::mem::take(map);
        for (key, value) in old {
            let new = renamed.iter().find(|(from, _)| *from == key);
            map.insert(new.map_or(key, |(_, to)| to.clone()), value);
        }
        true
    }

    /// What takes the place of a value whose key says that it is secret.
    fn by_key(&self, side: Side, key: &str, value: &Value, counts: &mut Counts) -> Option<Value> {
        let text = value.as_str().filter(|text| text.len() >= 8 && is_secret_name(key))?;
        let rule = self.rules.iter().find(|rule| rule.by_key && rule.applies_to.covers(side))?;
        if *text == rule.replacement || !is_secret_value(&key.to_ascii_lowercase(), text) {
            return None;
        }
        *counts.entry(rule.name.clone()).or_default() += 1;
        Some(Value::from(rule.replacement.clone()))
    }

    /// A string; one that is JSON itself (the arguments of a tool call) is also looked into, because
    /// escapes hide what is in it.
    fn string(&self, side: Side, text: &str, counts: &mut Counts) -> Option<String> {
        let redacted = self.text(side, text, counts);
        let current = redacted.as_deref().unwrap_or(text);
        let opens = current.trim_start().starts_with(['{', '[']);
        if opens
            && let Ok(mut inner) = serde_json::from_str::<Value>(current)
            && self.value(side, &mut inner, counts)
        {
            return Some(inner.to_string());
        }
        redacted
    }
}
