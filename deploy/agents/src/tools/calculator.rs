//! The calculator tool: whole numbers, `+ - * /`, parentheses.
//!
//! Invariant: any text gives a number or a sentence, in bounded depth and time.

use std::iter::Peekable;
use std::str::Chars;

/// Longest expression, characters.
const CHARS_MAX: usize = 200;
/// Deepest nesting.
const DEPTH_MAX: usize = 20;

/// The value of an expression, or what is wrong with it.
///
/// # Errors
/// A sentence for the model.
pub fn evaluate(expression: &str) -> Result<i64, String> {
    if expression.chars().count() > CHARS_MAX {
        return Err(format!("error: longer than {CHARS_MAX} characters"));
    }
    let mut reader = Reader { rest: expression.chars().peekable(), depth: 0 };
    let value = reader.sum()?;
    match reader.next_char() {
        None => Ok(value),
        Some(other) => Err(format!("error: unexpected {other:?}")),
    }
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    depth: usize,
}

impl Reader<'_> {
    fn next_char(&mut self) -> Option<char> {
        while self.rest.next_if(|char| char.is_whitespace()).is_some() {}
        self.rest.peek().copied()
    }

    fn take(&mut self, wanted: &[char]) -> Option<char> {
        let found = self.next_char().filter(|char| wanted.contains(char))?;
        self.rest.next();
        Some(found)
    }

    fn sum(&mut self) -> Result<i64, String> {
        let mut value = self.product()?;
        while let Some(sign) = self.take(&['+', '-']) {
            let other = self.product()?;
            let sum = if sign == '+' { value.checked_add(other) } else { value.checked_sub(other) };
            value = sum.ok_or_else(too_large)?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<i64, String> {
        let mut value = self.factor()?;
        while let Some(sign) = self.take(&['*', '/']) {
            let other = self.factor()?;
            value = match sign {
                '*' => value.checked_mul(other).ok_or_else(too_large)?,
                _ if other == 0 => return Err("error: division by zero".into()),
                _ => value.checked_div(other).ok_or_else(too_large)?,
            };
        }
        Ok(value)
    }

    fn factor(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("error: nested too deeply".into());
        }
        let value = if self.take(&['-']).is_some() {
            self.factor()?.checked_neg().ok_or_else(too_large)?
        } else if self.take(&['(']).is_some() {
            let inner = self.sum()?;
            self.take(&[')']).ok_or_else(|| "error: a parenthesis is not closed".to_owned())?;
            inner
        } else {
            self.number()?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn number(&mut self) -> Result<i64, String> {
        let found = self.next_char();
        let mut digits = String::new();
        while let Some(digit) = self.rest.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        match found {
            _ if !digits.is_empty() => digits.parse().map_err(|_| too_large()),
            None => Err("error: a number is missing at the end".into()),
            Some(other) => Err(format!("error: unexpected {other:?}")),
        }
    }
}

fn too_large() -> String {
    "error: the number is too large".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_follows_the_usual_order() {
        for (text, value) in
            [("2+3*4", 14), ("(2 + 3) * 4", 20), ("-7 - -2", -5), ("9 / 2", 4), (" 8 ", 8)]
        {
            assert_eq!(evaluate(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused_in_words() {
        let deep = "(".repeat(100) + "1";
        let long = "1+".repeat(200);
        for text in [
            "",
            "2 +",
            "2 3",
            "x",
            "1/0",
            "(1",
            "99999999999999999999",
            &deep,
            &long,
            "9223372036854775807 + 1",
            "__import__('os')",
        ] {
            let why = evaluate(text).unwrap_err();
            assert!(why.starts_with("error: "), "{text}: {why}");
        }
    }
}
