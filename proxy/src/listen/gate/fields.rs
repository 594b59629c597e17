//! What the header fields of a request say together: its framing, and whether they are unambiguous.
//!
//! Fields are shown one by one, from an HTTP/1 head or from HTTP/2; the same rules hold for both.
//!
//! Invariant: after [`Fields::done`] at most one of a length and `chunked` frames the body, and no
//! field that decides about framing, routing or identity occurs twice or in disguise.

use super::refusal::Refusal;
use super::target;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

/// Fields of which there can only be one; two would let proxy and engine see different clients or
/// contents.
const SINGLE: [&[u8]; 10] = [
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"expect",
    b"upgrade",
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"content-type",
];
const HOST: usize = 0;
const LENGTH: usize = 1;
const CODING: usize = 2;
const EXPECT: usize = 3;
const UPGRADE: usize = 4;

/// Fields about which a client cannot say that they are only for the next hop, or send as a
/// trailer.
const PROTECTED: &[&[u8]] = &[
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"expect",
    b"authorization",
    b"proxy-authorization",
    b"cookie",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"content-type",
    b"content-encoding",
    b"content-range",
    b"forwarded",
    b"via",
    b"x-real-ip",
];
/// Families of them.
const PROTECTED_PREFIXES: &[&[u8]] = &[b"x-forwarded-", b"x-hone-"];

/// What else is no trailer.
const NO_TRAILER: &[&[u8]] =
    &[b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"cache-control", b"set-cookie"];

/// What gateways that turn `-` into `_` would take for another field.
const IMITATED: &[&[u8]] = &[
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"content-type",
    b"connection",
    b"expect",
    b"upgrade",
    b"authorization",
];

/// Names in one `Connection` field; pingora refuses ten.
const NOMINATIONS_MAX: u8 = 8;
/// Digits of a `Content-Length`: everything below 10^18 fits everywhere.
const LENGTH_DIGITS_MAX: usize = 18;

/// What has been seen so far.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fields {
    count: usize,
    seen: [bool; SINGLE.len()],
    length: u64,
    nominations: u8,
    upgrade_nominated: bool,
    websocket: bool,
}

impl Fields {
    /// Takes a field; `value` is all that stands behind the colon. Returns whether it was `Host`.
    pub fn take(&mut self, name: &[u8], value: &[u8], count_max: usize) -> Result<bool, Refusal> {
        self.count += 1;
        if self.count > count_max {
            return Err(Refusal::FieldsMany);
        }
        if let Some(at) = SINGLE.iter().position(|single| name.eq_ignore_ascii_case(single)) {
            let again = std::mem::replace(&mut self.seen[at], true);
            // Servers disagree about other white space around these three.
            let value = if at <= CODING { after_blanks(value) } else { value.trim_ascii() };
            return self.single(at, value, again);
        }
        if name.eq_ignore_ascii_case(b"connection") {
            self.nominated(value)?;
        } else if imitates(name) {
            return Err(Refusal::Imitation);
        }
        Ok(false)
    }

    fn single(&mut self, at: usize, value: &[u8], again: bool) -> Result<bool, Refusal> {
        match at {
            HOST if again || !target::is_host(value) => return Err(Refusal::Host),
            LENGTH if again => return Err(Refusal::Length),
            LENGTH => self.length = decimal(value).ok_or(Refusal::Length)?,
            CODING if again => return Err(Refusal::Coding),
            CODING => coding(value)?,
            EXPECT if again || !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(Refusal::Expectation);
            }
            UPGRADE => {
                let mut offers = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
                self.websocket = offers.any(|offer| offer.eq_ignore_ascii_case(b"websocket"));
            }
            _ => {}
        }
        if again { Err(Refusal::Repeated) } else { Ok(at == HOST) }
    }

    fn nominated(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for name in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            self.nominations = self.nominations.saturating_add(1);
            let sane = name.iter().all(|b| is_token(*b));
            if !sane || self.nominations > NOMINATIONS_MAX || is_protected(name) {
                return Err(Refusal::Nomination);
            }
            self.upgrade_nominated |= name.eq_ignore_ascii_case(b"upgrade");
        }
        Ok(())
    }

    /// Whether `Host` was among them.
    pub fn has_host(&self) -> bool {
        self.seen[HOST]
    }

    /// Whether the client waits for an interim answer before it sends the body.
    pub fn expects(&self) -> bool {
        self.seen[EXPECT]
    }

    /// All fields were shown. How the body is framed, and whether the request may become a
    /// websocket.
    pub fn done(&self, method: &[u8], http_10: bool) -> Result<(Framing, bool), Refusal> {
        let framing = match (self.seen[LENGTH], self.seen[CODING]) {
            (true, true) => return Err(Refusal::LengthAndCoding),
            (_, true) if http_10 => return Err(Refusal::Coding),
            (_, true) => Framing::Chunked,
            (_, false) => Framing::Length(self.length),
        };
        let plain = method == b"GET" && framing == Framing::Length(0) && !http_10;
        if self.websocket && !(plain && self.upgrade_nominated) {
            return Err(Refusal::Upgrade);
        }
        Ok((framing, self.websocket))
    }
}

/// Whether a field may not stand in the trailer section.
pub fn no_trailer(name: &[u8]) -> bool {
    is_protected(name) || imitates(name) || NO_TRAILER.iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn is_protected(name: &[u8]) -> bool {
    let begins = |prefix: &&[u8]| {
        name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
    };
    PROTECTED.iter().any(|n| name.eq_ignore_ascii_case(n)) || PROTECTED_PREFIXES.iter().any(begins)
}

/// Without the spaces at the beginning.
pub fn after_blanks(value: &[u8]) -> &[u8] {
    let blanks = value.iter().take_while(|b| **b == b' ').count();
    &value[blanks..]
}

fn imitates(name: &[u8]) -> bool {
    if !name.contains(&b'_') {
        return false;
    }
    let same = |b: &u8, other: &u8| match b {
        b'_' => *other == b'-',
        b => b.eq_ignore_ascii_case(other),
    };
    let begins = |other: &&[u8]| {
        name.len() >= other.len() && name.iter().zip(other.iter()).all(|(b, o)| same(b, o))
    };
    IMITATED.iter().any(|o| name.len() == o.len() && begins(o))
        || PROTECTED_PREFIXES.iter().any(begins)
}

fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let sane = digits && !value.is_empty() && value.len() <= LENGTH_DIGITS_MAX;
    sane.then(|| value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

/// Exactly `chunked`; another registered coding is understood and not offered, the rest is noise.
fn coding(value: &[u8]) -> Result<(), Refusal> {
    if value == b"chunked" {
        return Ok(());
    }
    let known = |name: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
    };
    let mut names = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    let understood = names.next().is_some_and(known)
        && names.all(|name| known(name) || name.eq_ignore_ascii_case(b"chunked"));
    Err(if understood { Refusal::CodingUnknown } else { Refusal::Coding })
}

/// What field names and methods are made of.
pub const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// What field values are made of: visible characters, blanks, and bytes beyond ASCII.
pub const fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(fields: &[(&str, &str)]) -> Result<(Framing, bool), Refusal> {
        let mut seen = Fields::default();
        for (name, value) in fields {
            seen.take(name.as_bytes(), value.as_bytes(), 100)?;
        }
        seen.done(b"GET", false)
    }

    #[test]
    fn a_body_has_one_framing() {
        assert_eq!(all(&[]), Ok((Framing::Length(0), false)));
        assert_eq!(all(&[("content-length", "007")]), Ok((Framing::Length(7), false)));
        assert_eq!(all(&[("Transfer-Encoding", "chunked")]), Ok((Framing::Chunked, false)));
        for value in ["", "+1", "-1", "1,1", "1 1", "0x1", "9999999999999999999", "1.0"] {
            assert_eq!(all(&[("content-length", value)]), Err(Refusal::Length), "{value}");
        }
        for (value, refusal) in [
            ("Chunked", Refusal::Coding),
            ("chunked, chunked", Refusal::Coding),
            ("identity", Refusal::Coding),
            ("gzip, chunked", Refusal::CodingUnknown),
            ("", Refusal::Coding),
        ] {
            assert_eq!(all(&[("transfer-encoding", value)]), Err(refusal), "{value}");
        }
    }

    #[test]
    fn protected_fields_cannot_be_nominated_imitated_or_trailed() {
        for name in ["Host", "AUTHORIZATION", "x-forwarded-for", "X-Hone-Generation", "a b"] {
            assert_eq!(all(&[("connection", name)]), Err(Refusal::Nomination), "{name}");
        }
        assert!(all(&[("connection", "keep-alive, te, x-mine,")]).is_ok());
        for name in ["content_length", "Transfer_Encoding", "x_hone_generation", "X_Forwarded_For"]
        {
            assert_eq!(all(&[(name, "1")]), Err(Refusal::Imitation), "{name}");
            assert!(no_trailer(name.as_bytes()));
        }
        assert!(all(&[("session_id", "1"), ("hostess_name", "1")]).is_ok());
        assert!(no_trailer(b"TE") && !no_trailer(b"x-checksum"));
    }

    #[test]
    fn a_websocket_is_a_get_that_says_so_twice() {
        let asked = [("upgrade", "WebSocket"), ("connection", "Upgrade")];
        assert_eq!(all(&asked), Ok((Framing::Length(0), true)));
        assert_eq!(all(&asked[..1]), Err(Refusal::Upgrade));
        let with_body = [asked[0], asked[1], ("content-length", "1")];
        assert_eq!(all(&with_body), Err(Refusal::Upgrade));
        assert_eq!(all(&[("upgrade", "h2c")]), Ok((Framing::Length(0), false)));
    }
}
