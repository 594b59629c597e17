//! Identity numbers of persons that carry a check digit, and the US social security number.
//!
//! Only numbers whose check and surroundings agree count: nine digits alone may be anything.
//! Invariant: a check never looks outside of its candidate and the characters beside it.

use std::ops::Range;

use super::checksum::luhn;
use super::shape::{Needs, Shape, digits, is_own_number, stands_alone};

/// All shapes.
pub(super) fn shapes() -> Vec<Shape> {
    let needs = |digits: usize| Needs { digits, ..Needs::default() };
    vec![
        Shape::new(needs(9), r"(?-u)\d{3}-\d{2}-\d{4}", ssn),
        Shape::new(needs(7), r"(?-u)(?:\d{8}|[XYZ]-?\d{7})-?[A-Z]", spain),
        Shape::new(needs(7), r"(?-u)[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", italy),
        Shape::new(needs(15), r"(?-u)[12](?: ?\d\d){3}(?: ?\d{3}){2} ?\d\d", france),
        Shape::new(needs(11), r"(?-u)\d{11}", poland),
        Shape::new(needs(11), r"(?-u)\d{3}\.\d{3}\.\d{3}-\d\d", brazil),
        Shape::new(needs(17), r"(?-u)\d{17}[0-9Xx]", china),
        Shape::new(needs(9), r"(?-u)\d{6}[-+A]\d{3}[0-9A-Y]", finland),
        Shape::new(needs(10), r"(?-u)(?:19|20)?\d{6}[-+]\d{4}", sweden),
    ]
}

fn own(text: &str, found: &Range<usize>) -> Option<(String, Vec<u32>)> {
    let candidate = text.get(found.clone())?;
    is_own_number(text, found).then(|| (candidate.to_owned(), digits(candidate)))
}

fn number(digits: &[u32]) -> u64 {
    digits.iter().fold(0, |all, d| all * 10 + u64::from(*d))
}

fn weighted(digits: &[u32], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(digit, weight)| digit * weight).sum()
}

fn is_date(month: u64, day: u64) -> bool {
    (1..=12).contains(&month) && (1..=31).contains(&day)
}

/// Areas 000, 666 and 9xx, group 00 and serial 0000 were never given out.
fn ssn(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let (_, d) = own(text, &found)?;
    let (area, group, serial) = (number(d.get(..3)?), number(d.get(3..5)?), number(d.get(5..)?));
    (area != 0 && area != 666 && area < 900 && group != 0 && serial != 0).then_some(found)
}

/// DNI and NIE: the number modulo 23 names the letter.
fn spain(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let (candidate, mut d) = own(text, &found)?;
    let lead = candidate.chars().next()?;
    if let Some(first) = ['X', 'Y', 'Z'].iter().position(|c| *c == lead) {
        d.insert(0, u32::try_from(first).ok()?);
    }
    let letter = b"TRWAGMYFPDXBNJZSQVHLCKE".get(usize::try_from(number(&d) % 23).ok()?)?;
    (candidate.as_bytes().last() == Some(letter)).then_some(found)
}

/// Codice fiscale: characters at odd places count by a table, the sum modulo 26 is the last letter.
fn italy(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let candidate = text.get(found.clone()).filter(|_| stands_alone(text, &found))?;
    let (body, last) = candidate.split_at_checked(15)?;
    let value = |(at, c): (usize, char)| {
        let digit = c.to_digit(36)?;
        let plain = if c.is_ascii_digit() { digit } else { digit - 10 };
        if at % 2 == 0 { ODD.get(usize::try_from(plain).ok()?).copied() } else { Some(plain) }
    };
    let sum: u32 = body.chars().enumerate().map(value).sum::<Option<u32>>()?;
    (char::from_digit(sum % 26 + 10, 36)?.to_ascii_uppercase() == last.chars().next()?)
        .then_some(found)
}

/// NIR: the last two digits are 97 minus the others modulo 97.
fn france(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let (_, d) = own(text, &found)?;
    let (body, key) = (number(d.get(..13)?), number(d.get(13..)?));
    let month = number(d.get(3..5)?);
    ((1..=42).contains(&month) && 97 - body % 97 == key).then_some(found)
}

/// PESEL: ten weighted digits; the month carries the century.
fn poland(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let (_, d) = own(text, &found)?;
    let sum = weighted(d.get(..10)?, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3]);
    let date = is_date(number(d.get(2..4)?) % 20, number(d.get(4..6)?));
    (date && (10 - sum % 10) % 10 == *d.last()?).then_some(found)
}

/// CPF: two check digits modulo 11. Equal digits throughout pass the sum and mean nothing.
fn brazil(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let (_, d) = own(text, &found)?;
    let check = |upto: usize| {
        let body = d.get(..upto)?;
        let weights: Vec<u32> = (2..=u32::try_from(upto).ok()? + 1).rev().collect();
        let rest = weighted(body, &weights) * 10 % 11 % 10;
        Some(rest == *d.get(upto)?)
    };
    let same = d.iter().all(|digit| Some(digit) == d.first());
    (!same && check(9)? && check(10)?).then_some(found)
}

/// GB 11643: seventeen weighted digits modulo 11, with a birth date inside.
fn china(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let (candidate, d) = own(text, &found)?;
    let sum = weighted(d.get(..17)?, &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]);
    let year = number(d.get(6..10)?);
    let date = is_date(number(d.get(10..12)?), number(d.get(12..14)?));
    let expected = b"10X98765432".get(usize::try_from(sum % 11).ok()?)?;
    let last = candidate.as_bytes().last()?.to_ascii_uppercase();
    ((1900..2100).contains(&year) && date && *expected == last).then_some(found)
}

/// HETU: date and serial modulo 31 name the last character.
fn finland(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(found.clone()).filter(|_| is_own_number(text, &found))?;
    let body = digits(candidate.get(..10)?);
    let rest = usize::try_from(number(&body) % 31).ok()?;
    let expected = b"0123456789ABCDEFHJKLMNPRSTUVWXY".get(rest)?;
    let date = is_date(number(body.get(2..4)?), number(body.get(..2)?));
    (date && candidate.as_bytes().last() == Some(expected)).then_some(found)
}

/// Personnummer: Luhn over the ten digits without the century.
fn sweden(text: &str, found: Range<usize>) -> Option<Range<usize>> {
    let (_, d) = own(text, &found)?;
    let ten = d.get(d.len().checked_sub(10)?..)?;
    let date = is_date(number(ten.get(2..4)?), number(ten.get(4..6)?));
    (date && luhn(ten)).then_some(found)
}
