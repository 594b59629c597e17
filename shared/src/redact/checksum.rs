//! Check digits: Luhn, ISO 7064 mod 97-10, and which card numbers and IBANs exist.
//!
//! Sources: ISO/IEC 7812-1 annex B, ISO 13616 and its registry of lengths.
//! Invariant: pure functions of digits; no text is kept.

/// Luhn's check over all digits, the last one being the check digit.
pub(super) fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| if i % 2 == 0 { *d } else { d * 2 - if *d > 4 { 9 } else { 0 } })
        .sum();
    !digits.is_empty() && sum.is_multiple_of(10)
}

/// Whether digits are a payment card number: a known prefix with a length it comes in, Luhn.
pub(super) fn is_card(digits: &[u32]) -> bool {
    let head = |n: usize| digits.iter().take(n).fold(0, |all, d| all * 10 + d);
    let (two, three, four) = (head(2), head(3), head(4));
    let length = digits.len();
    let brand = match two {
        40..=49 => matches!(length, 13 | 16 | 19),
        51..=55 => length == 16,
        22..=27 => length == 16 && (2221..=2720).contains(&four),
        34 | 37 => length == 15,
        36 | 38 | 39 => length == 14,
        30 => length == 14 && (300..=305).contains(&three),
        35 => (16..=19).contains(&length) && (3528..=3589).contains(&four),
        60 | 64 | 65 | 62 => (16..=19).contains(&length),
        _ => false,
    };
    brand && luhn(digits)
}

/// Lengths of IBANs by country.
const IBAN_LENGTHS: &[(&str, usize)] = &[
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NL", 18),
    ("NO", 15),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("SA", 24),
    ("SC", 31),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
];

/// How many letters and digits the IBANs of a country have.
pub(super) fn iban_chars(country: &str) -> Option<usize> {
    IBAN_LENGTHS.iter().find(|(code, _)| *code == country).map(|(_, chars)| *chars)
}

/// ISO 7064 mod 97-10 over an IBAN without spaces.
pub(super) fn is_iban(iban: &str) -> bool {
    let (head, tail) = match (iban.get(..4), iban.get(4..)) {
        (Some(head), Some(tail)) => (head, tail),
        _ => return false,
    };
    let rest = tail.chars().chain(head.chars()).try_fold(0u32, |rest, c| {
        let value = c.to_digit(36)?;
        Some((rest * if value > 9 { 100 } else { 10 } + value) % 97)
    });
    rest == Some(1)
}
