//! The policies that are compiled in, and their installation on first start.
//!
//! Invariant: installing never overwrites a file: what an operator wrote stays.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::PolicyError;

const FILES: &[(&str, &str)] = &[
    ("gates/chat.toml", include_str!("../../../policies/gates/chat.toml")),
    ("judges/chat.toml", include_str!("../../../policies/judges/chat.toml")),
    ("judges/code.toml", include_str!("../../../policies/judges/code.toml")),
    ("judges/gui.toml", include_str!("../../../policies/judges/gui.toml")),
    ("judges/swe.toml", include_str!("../../../policies/judges/swe.toml")),
    ("judges/terminal.toml", include_str!("../../../policies/judges/terminal.toml")),
    ("judges/tool.toml", include_str!("../../../policies/judges/tool.toml")),
    ("redactions/personal.toml", include_str!("../../../policies/redactions/personal.toml")),
    ("redactions/secrets.toml", include_str!("../../../policies/redactions/secrets.toml")),
    ("routes/chat.toml", include_str!("../../../policies/routes/chat.toml")),
    ("routes/completions.toml", include_str!("../../../policies/routes/completions.toml")),
];

/// `(path, text)` of every built-in policy file.
pub fn builtin_files() -> &'static [(&'static str, &'static str)] {
    FILES
}

/// Writes the built-in files into `dir` if it holds no policy directory yet. Returns whether it
/// did.
pub fn install_builtin(dir: &Path) -> Result<bool, PolicyError> {
    if super::SECTIONS.iter().any(|section| dir.join(section).exists()) {
        return Ok(false);
    }
    for (path, text) in FILES {
        write_new(&dir.join(path), text).map_err(|error| PolicyError::Io {
            file: dir.join(path).display().to_string(),
            problem: error.to_string(),
        })?;
    }
    Ok(true)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match File::create_new(path) {
        Ok(mut file) => file.write_all(text.as_bytes()),
        // Another process of the same start was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
