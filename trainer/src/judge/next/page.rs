//! Screens and pages as text: address, listed elements, and whether an action changed anything.
//!
//! Understood: `url: …` and lists such as `[7] button 'Sign in'`, as browser agents print them, and
//! accessibility trees (`- button "Sign in"`, `button 'Sign in'`).
//!
//! Invariant: two pages are the same only if address and every element are.

use regex::Regex;
use std::sync::LazyLock;

/// Elements that make a text a page where no address is given.
const ELEMENTS_MIN: usize = 2;

static ELEMENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?mi)^\s*(?:-\s*)?(?:(?:\[\d+\]|#\d+|\d+:)\s*)?(?:<)?(?:button|link|textbox|searchbox|combobox|checkbox|",
        r"radio|heading|row|tab|menuitem|switch|slider|alert|dialog|toast|img|listitem|option|input|",
        r"text|rootwebarea|cell|statictext|window|field|item|status|tile|combo|select|banner)\b",
        r"\s*(?:<|'|\x22|\d|#|=|:|[A-Z][\w ]*(?:=|$)|$)"
    ))
    .ok()
});
static ADDRESS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?mi)^\s*(?:current )?(?:page )?url:\s*(\S+)").ok());

/// Whether a text shows a page.
pub fn is_page(text: &str) -> bool {
    if !text.contains([':', '[', '-']) {
        return false;
    }
    let elements =
        || ELEMENT.as_ref().map_or(0, |form| form.find_iter(text).take(ELEMENTS_MIN).count());
    (address(text).is_some() && elements() >= 1) || elements() >= ELEMENTS_MIN
}

/// The address of a page.
pub fn address(text: &str) -> Option<&str> {
    Some(ADDRESS.as_ref()?.captures(text)?.get(1)?.as_str())
}

/// The lines of a page from its address or first element on: what stands before is not the page.
fn body(text: &str) -> impl Iterator<Item = &str> {
    let starts: Vec<usize> = [
        ADDRESS.as_ref().and_then(|form| form.find(text)).map(|m| m.start()),
        ELEMENT.as_ref().and_then(|form| form.find(text)).map(|m| m.start()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let from = starts.into_iter().min().unwrap_or(0);
    let lines = text.get(from..).unwrap_or_default().lines();
    lines.map(str::trim).filter(|line| !line.is_empty())
}

/// Whether the element that an action names by its number is text that nothing can be done with.
pub fn is_static(page: &str, arguments: &str) -> bool {
    let digits = arguments.trim_start_matches(|c: char| !c.is_ascii_digit());
    let number: &str = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    if number.is_empty() {
        return false;
    }
    let marks = [format!("[{number}] "), format!("#{number} ")];
    let mut of = page.lines().filter_map(|line| {
        marks.iter().find_map(|mark| line.trim_start().strip_prefix(mark.as_str()))
    });
    of.next().is_some_and(|role| ["heading ", "text "].iter().any(|r| role.starts_with(r)))
}

/// Whether both texts are pages, and the same one.
pub fn same(a: &str, b: &str) -> bool {
    is_page(a) && is_page(b) && body(a).eq(body(b))
}
