//! `strftime` in UTC for chat templates that print today's date.
//!
//! Only the directives that published templates use; an unknown one is left as it is.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats seconds since 1970-01-01 UTC.
pub(super) fn format(pattern: &str, seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let directive = &rest[at + 1..];
        let bare = directive.starts_with('-');
        let letter = directive.chars().nth(usize::from(bare));
        let number = |value: u64, width: usize| {
            if bare { value.to_string() } else { format!("{value:0width$}") }
        };
        let piece = match letter {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => number(second / 3600, 2),
            Some('I') => number((second / 3600 + 11) % 12 + 1, 2),
            Some('p') => if second < 43_200 { "AM" } else { "PM" }.to_owned(),
            Some('M') => number(second / 60 % 60, 2),
            Some('S') => number(second % 60, 2),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => {
                format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
            }
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{}{other}", if bare { "-" } else { "" }),
            None => "%".to_owned(),
        };
        text.push_str(&piece);
        let used = usize::from(bare) + letter.map_or(0, char::len_utf8);
        rest = &directive[used.min(directive.len())..];
    }
    text.push_str(rest);
    text
}

/// Year, month and day of a day number (days since 1970-01-01), by walking 400-year eras.
/// Source: H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    //! Dates that are easy to get wrong.

    use super::format;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(format("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(format("%A, %B %-d, %Y", 951_782_400), "Tuesday, February 29, 2000");
        assert_eq!(format("%Y-%m-%d %H:%M:%S", 1_735_689_599), "2024-12-31 23:59:59");
        assert_eq!(format("%F %I:%M %p", 1_735_732_800), "2025-01-01 12:00 PM");
    }

    #[test]
    fn unknown_directives_and_a_trailing_percent_stay_as_they_are() {
        assert_eq!(format("%Q 100%", 0), "%Q 100%");
        assert_eq!(format("%%Y é %-q", 0), "%Y é %-q");
    }
}
