//! The built-in detectors, by name.
//!
//! Invariant: a detector is exact about what it accepts (checksum, length, surroundings), so that
//! dates, versions, ids and prices are left alone.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use super::checksum::{iban_chars, is_card, is_iban};
use super::shape::{Needs, Shape, after, before, digits, is_own_number, stands_alone};
use super::{national, secrets};

/// What can be looked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Detector {
    /// E-mail addresses.
    Email,
    /// Telephone numbers: international, North American, and national ones that begin with 0.
    Phone,
    /// IBANs, by length and checksum.
    Iban,
    /// Payment card numbers, by prefix, length and Luhn.
    CreditCard,
    /// IPv4 and IPv6 addresses but for loopback and unspecified ones.
    IpAddress,
    /// Identity numbers of persons, by checksum; US social security numbers by their rules.
    NationalId,
    /// Keys of well-known issuers.
    ApiKey,
    /// JSON web tokens.
    Jwt,
    /// PEM private keys.
    PrivateKey,
    /// Named secrets, bearer tokens, cookies, secrets in queries, passwords in URLs.
    Credential,
}

impl Detector {
    /// All of them, with their names in files.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Email, "email"),
        (Self::Phone, "phone"),
        (Self::Iban, "iban"),
        (Self::CreditCard, "credit_card"),
        (Self::IpAddress, "ip_address"),
        (Self::NationalId, "national_id"),
        (Self::ApiKey, "api_key"),
        (Self::Jwt, "jwt"),
        (Self::PrivateKey, "private_key"),
        (Self::Credential, "credential"),
    ];

    /// The name in files.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(known, _)| *known == self).map_or("", |(_, name)| name)
    }

    /// What it looks for: one for all rules and policies of the process.
    pub(super) fn shapes(self) -> Arc<[Shape]> {
        static SHAPES: [OnceLock<Arc<[Shape]>>; Detector::ALL.len()] =
            [const { OnceLock::new() }; Detector::ALL.len()];
        let at = Self::ALL.iter().position(|(known, _)| *known == self);
        let make = || Arc::from(self.make_shapes());
        at.and_then(|at| SHAPES.get(at))
            .map_or_else(make, |shapes| Arc::clone(shapes.get_or_init(make)))
    }

    fn make_shapes(self) -> Vec<Shape> {
        let needs = |digits: usize| Needs { digits, ..Needs::default() };
        let one = |needs, pattern, check| vec![Shape::new(needs, pattern, check)];
        match self {
            Self::Email => {
                let address = r"[\p{L}\p{N}._%+-]+@(?:[\p{L}\p{N}-]+\.)+\p{L}{2,24}";
                one(Needs { ats: 1, dots: 1, ..Needs::default() }, address, email)
            }
            Self::Phone => vec![
                Shape::new(
                    needs(8),
                    r"(?-u)(?:\+|00)\(?[1-9]\d{0,2}\)?(?:[ .()/-]{0,2}\d){6,13}",
                    international,
                ),
                Shape::new(
                    needs(10),
                    r"(?-u)(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}",
                    north_american,
                ),
                Shape::new(needs(9), r"(?-u)\(?0\d{1,5}\)?(?:[ /.-]\d{2,8}){1,5}", national),
            ],
            Self::Iban => one(needs(10), r"(?-u)[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}", iban),
            Self::CreditCard => one(needs(13), r"(?-u)\d(?:[ -]?\d){12,18}", card),
            Self::IpAddress => vec![
                Shape::new(
                    Needs { digits: 4, dots: 3, ..Needs::default() },
                    r"(?-u)\d{1,3}(?:\.\d{1,3}){3}",
                    ipv4,
                ),
                Shape::new(
                    Needs { colons: 2, digits: 1, ..Needs::default() },
                    r"(?i-u)[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}",
                    ipv6,
                ),
            ],
            Self::NationalId => national::shapes(),
            Self::ApiKey => secrets::api_keys(),
            Self::Jwt => secrets::jwts(),
            Self::PrivateKey => secrets::private_keys(),
            Self::Credential => secrets::credentials(),
        }
    }
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Detector {
    type Err = String;

    /// Error: the names that there are.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        let names = || Self::ALL.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
        found.map(|(detector, _)| *detector).ok_or_else(names)
    }
}

/// A name at a domain. Files (`icon@2x.png`) and remotes (`git@host:path`) are none.
fn email(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    const FILES: [&str; 20] = [
        "png", "jpg", "jpeg", "gif", "svg", "webp", "js", "ts", "css", "json", "html", "py", "rs",
        "go", "rb", "txt", "md", "yaml", "yml", "toml",
    ];
    let candidate = text.get(found.clone())?;
    let (local, domain) = candidate.split_once('@')?;
    let top = domain.rsplit('.').next()?.to_lowercase();
    let remote = local == "git" && after(text, found.end) == Some(':');
    let dotted = local.starts_with('.') || local.ends_with('.');
    let usable = local.len() <= 64 && !dotted && !domain.starts_with('-');
    (usable && !remote && !FILES.contains(&top.as_str())).then_some(found)
}

fn international(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    let count = digits(candidate).len();
    let grouped = candidate.contains([' ', '-', '.', '(', '/']);
    let plus = candidate.starts_with('+');
    let enough = if plus && grouped { 8 } else { 10 };
    let fits = count >= enough && count <= if plus { 15 } else { 17 };
    // Without separators `00…` is any number.
    let told = plus || grouped;
    (fits && told && is_own_number(text, &found)).then_some(found)
}

/// Area and exchange codes begin with 2 to 9.
fn north_american(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let d = digits(text.get(found.clone())?);
    let code = |at: usize| d.get(at).is_some_and(|digit| *digit >= 2);
    let country = text
        .get(..found.start)
        .is_some_and(|head| head.ends_with("+1 ") || head.ends_with("+1-") || head.ends_with("1-"));
    let alone = is_own_number(text, &found) || country && stands_alone(text, &found);
    (code(0) && code(3) && alone).then_some(found)
}

fn national(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    let count = digits(candidate).len();
    let groups: Vec<&str> =
        candidate.split(|c: char| !c.is_ascii_digit()).filter(|group| !group.is_empty()).collect();
    // 04.05.2024 10 is a date with something behind it.
    let date = match groups.as_slice() {
        [a, b, c, ..] => a.len() <= 2 && b.len() <= 2 && c.len() == 4,
        _ => false,
    };
    let year = groups.iter().skip(1).any(|group| group.len() == 4 && group.starts_with("20"));
    let decimal = groups.len() == 2 && candidate.contains('.');
    let dated = date || (year && groups.len() == 3);
    let phone = (9..=12).contains(&count) && !dated && !decimal;
    (phone && is_own_number(text, &found)).then_some(found)
}

/// The candidate may run on into the next word; the country says how long an IBAN is.
fn iban(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    let chars = iban_chars(candidate.get(..2)?)?;
    let mut plain = String::with_capacity(chars);
    let mut end = found.start;
    for (at, c) in candidate.char_indices() {
        if c.is_ascii_alphanumeric() && plain.len() < chars {
            plain.push(c);
            end = found.start + at + 1;
        }
    }
    let hit = found.start..end;
    (plain.len() == chars && is_iban(&plain) && stands_alone(text, &hit)).then_some(hit)
}

fn card(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    // Groups of a card number have the same separator, and at least three digits.
    let mixed = candidate.contains(' ') && candidate.contains('-');
    let ragged = candidate.split([' ', '-']).any(|group| group.len() < 3);
    (!mixed && !ragged && is_card(&digits(candidate)) && is_own_number(text, &found))
        .then_some(found)
}

fn ipv4(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    let address: Ipv4Addr = candidate.parse().ok()?;
    let special = address.is_loopback()
        || address.is_broadcast()
        || address.octets().first() == Some(&0)
        || address.is_multicast();
    let head = text.get(..found.start).unwrap_or_default().trim_end_matches([' ', ':', '=']);
    let version = ["version", "release", "ver.", "ver"].iter().any(|word| {
        head.len() >= word.len()
            && head.get(head.len() - word.len()..).is_some_and(|t| t.eq_ignore_ascii_case(word))
    });
    let joins = matches!(before(text, found.start), Some('.' | '-' | '_'));
    let goes_on = matches!(after(text, found.end), Some('.' | '-'))
        && after(text, found.end + 1).is_some_and(char::is_alphanumeric);
    (!special && !version && !joins && !goes_on && stands_alone(text, &found)).then_some(found)
}

fn ipv6(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone())?;
    // A colon behind the address belongs to the sentence.
    let trimmed = candidate.strip_suffix(':').filter(|rest| !rest.ends_with(':'));
    let candidate = trimmed.unwrap_or(candidate);
    let hit = found.start..found.start + candidate.len();
    let address: Ipv6Addr = candidate.parse().ok()?;
    let groups: Vec<&str> = candidate.split(':').filter(|group| !group.is_empty()).collect();
    let numbered = |group: &&str| group.len() >= 3 && group.bytes().any(|b| b.is_ascii_digit());
    // `b::c` is a path of some programming language.
    let likely = groups.len() >= 3 || groups.iter().any(numbered);
    let special = address.is_loopback() || address.is_unspecified();
    let joins = matches!(before(text, hit.start), Some(':' | '.'));
    (likely && !special && !joins && stands_alone(text, &hit)).then_some(hit)
}
