//! The patch tool: one text is replaced by another, if it stands in the sources exactly once.
//!
//! Invariant: an edit that does not apply changes nothing; indentation of the replaced line is
//! kept, so that a line can be named without it.

/// What an edit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Which file changed.
    pub file: String,
    /// Its new text.
    pub text: String,
    /// The change as a unified diff of whole lines.
    pub diff: String,
}

/// Applies an edit to the one file in which `search` stands once.
///
/// # Errors
/// A sentence for the model.
pub fn apply(files: &[(String, String)], search: &str, replace: &str) -> Result<Applied, String> {
    let wanted = search.trim();
    if wanted.is_empty() {
        return Err("error: the patch does not apply: search is empty".into());
    }
    let found: Vec<(&String, &String, usize)> = files
        .iter()
        .flat_map(|(name, text)| text.match_indices(wanted).map(move |(at, _)| (name, text, at)))
        .collect();
    let (name, text, at) = match found.as_slice() {
        [only] => *only,
        [] => return Err(format!("error: the patch does not apply: {wanted:?} is in no file")),
        many => {
            let count = many.len();
            return Err(format!(
                "error: the patch does not apply: {wanted:?} stands {count} times"
            ));
        }
    };
    if replace.trim() == wanted {
        return Err("error: the patch changes nothing".into());
    }
    let (before, rest) = text.split_at(at);
    let after = rest.get(wanted.len()..).unwrap_or_default();
    let changed = format!("{before}{}{after}", replace.trim());
    let diff = diff(name, text, &changed);
    Ok(Applied { file: name.clone(), text: changed, diff })
}

/// The lines that differ between two texts, which differ in one place.
fn diff(name: &str, old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = old[same..].iter().rev().zip(new[same..].iter().rev());
    let tail = rest.take_while(|(a, b)| a == b).count();
    let lines = |sign: &str, all: &[&str]| -> String {
        all[same..all.len() - tail].iter().map(|line| format!("{sign}{line}\n")).collect()
    };
    let (from, to) = (lines("-", &old), lines("+", &new));
    let (start, gone, come) = (same + 1, old.len() - tail - same, new.len() - tail - same);
    format!("--- a/{name}\n+++ b/{name}\n@@ -{start},{gone} +{start},{come} @@\n{from}{to}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<(String, String)> {
        let text = |body: &str| format!("def f(a, b):\n    {body}\n");
        vec![("one.py".into(), text("return a - b")), ("two.py".into(), text("return a * b"))]
    }

    #[test]
    fn a_patch_that_applies_keeps_the_indentation_and_shows_the_change() {
        let applied = apply(&files(), "return a - b", "  return a + b ").unwrap();
        assert_eq!(applied.file, "one.py");
        assert_eq!(applied.text, "def f(a, b):\n    return a + b\n");
        let diff =
            "--- a/one.py\n+++ b/one.py\n@@ -2,1 +2,1 @@\n-    return a - b\n+    return a + b\n";
        assert_eq!(applied.diff, diff);
    }

    #[test]
    fn a_patch_that_fits_nowhere_or_twice_or_changes_nothing_is_refused() {
        for (search, why) in [
            ("return a % b", "in no file"),
            ("def f(a, b):", "stands 2 times"),
            ("  ", "is empty"),
            ("../../etc/passwd", "in no file"),
        ] {
            let said = apply(&files(), search, "x").unwrap_err();
            assert!(said.starts_with("error: ") && said.contains(why), "{search}: {said}");
        }
        assert!(apply(&files(), "return a - b", "return a - b").unwrap_err().contains("nothing"));
    }

    #[test]
    fn a_line_can_be_removed_or_become_two() {
        let gone = apply(&files(), "    return a - b\n", "").unwrap();
        assert!(gone.diff.contains("-    return a - b\n"), "{}", gone.diff);
        let two = apply(&files(), "return a - b", "c = a\n    return c").unwrap();
        assert!(two.diff.contains("@@ -2,1 +2,2 @@"), "{}", two.diff);
    }
}
