//! Generated personal data and secrets in sentences, and texts that only look like them.
#![allow(dead_code, missing_docs, reason = "each test binary uses its part")]

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Items of each kind.
const EACH: usize = 60;

pub struct Item {
    pub kind: &'static str,
    /// What must not be stored.
    pub secret: String,
    /// The sentence around it.
    pub text: String,
}

type Make = fn(&mut StdRng) -> String;

pub fn planted(seed: u64) -> Vec<Item> {
    let rng = &mut StdRng::seed_from_u64(seed);
    let kinds: [(&'static str, Make); 12] = [
        ("email", email),
        ("phone", phone),
        ("iban", iban),
        ("credit_card", card),
        ("ipv4", ipv4),
        ("ipv6", ipv6),
        ("national_id", national_id),
        ("api_key", api_key),
        ("jwt", jwt),
        ("private_key", private_key),
        ("password", password),
        ("url_userinfo", userinfo),
    ];
    let mut items = Vec::new();
    for (kind, make) in kinds {
        for _ in 0..EACH {
            let secret = make(rng);
            let text = sentence(rng, kind, &secret);
            items.push(Item { kind, secret, text });
        }
    }
    items
}

fn sentence(rng: &mut StdRng, kind: &str, secret: &str) -> String {
    let own = match kind {
        "password" => [
            "password: {}",
            "my passwd is\npassword={}",
            "{\"password\": \"{}\"}",
            "DB_PASSWORD='{}'",
        ],
        "url_userinfo" => [
            "postgres://{}@db.internal/app",
            "clone https://{}@git.example.com/x.git",
            "amqp://{}@mq:5672",
            "see ftp://{}@files.example.com",
        ],
        _ => ["Please use {} for this.", "It is {}, as I said", "- {}\n- next", "(see {})"],
    };
    own.choose(rng).unwrap().replace("{}", secret)
}

fn pick<'a>(rng: &mut StdRng, of: &[&'a str]) -> &'a str {
    of.choose(rng).unwrap()
}

fn string(rng: &mut StdRng, alphabet: &str, n: usize) -> String {
    let chars: Vec<char> = alphabet.chars().collect();
    (0..n).map(|_| *chars.choose(rng).unwrap()).collect()
}

const ALNUM: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const DIGITS: &str = "0123456789";

fn email(rng: &mut StdRng) -> String {
    let name =
        pick(rng, &["anna", "jo.doe", "m_meier", "li+news", "x1", "O.Brien", "josé", "k-ito"]);
    let host =
        pick(rng, &["mail.example.org", "example.co.uk", "uni-x.de", "büro.example.com", "a.io"]);
    format!("{name}{}@{host}", rng.random_range(0..999))
}

fn phone(rng: &mut StdRng) -> String {
    let mut d = |n| string(rng, DIGITS, n);
    let (a, b, c, e) = (d(3), d(3), d(4), d(2));
    match rng.random_range(0..7) {
        0 => format!("+49 30 {a}{c}"),
        1 => format!("+44 20 7{a} {c}"),
        2 => format!("({}) {}-{c}", 200 + rng.random_range(0..700), 200 + rng.random_range(0..700)),
        3 => format!("{}-{}-{c}", 200 + rng.random_range(0..700), 200 + rng.random_range(0..700)),
        4 => format!("+33 6 {e} {e} {e} {e}"),
        5 => format!("0{}/{a}{c}", 30 + rng.random_range(0..60)),
        _ => format!("+1-{}-{}{b}", 212 + rng.random_range(0..700), c),
    }
}

fn iban(rng: &mut StdRng) -> String {
    let (country, body) = match rng.random_range(0..4) {
        0 => ("DE", string(rng, DIGITS, 18)),
        1 => ("GB", string(rng, "ABCDEFGHIJ", 4) + &string(rng, DIGITS, 14)),
        2 => ("NL", string(rng, "ABNRIG", 4) + &string(rng, DIGITS, 10)),
        _ => (
            "FR",
            string(rng, DIGITS, 10) + &string(rng, "ABC0123456789", 11) + &string(rng, DIGITS, 2),
        ),
    };
    let rest = format!("{body}{country}00").chars().fold(0u32, |rest, c| {
        let v = c.to_digit(36).unwrap();
        (rest * if v > 9 { 100 } else { 10 } + v) % 97
    });
    let plain = format!("{country}{:02}{body}", 98 - rest);
    if rng.random_bool(0.5) {
        return plain;
    }
    let groups: Vec<String> =
        plain.as_bytes().chunks(4).map(|g| String::from_utf8_lossy(g).into_owned()).collect();
    groups.join(" ")
}

fn with_luhn(body: &str) -> String {
    let sum: u32 = body
        .chars()
        .rev()
        .enumerate()
        .map(|(i, c)| {
            let d = c.to_digit(10).unwrap();
            if i % 2 == 1 {
                d
            } else if d > 4 {
                d * 2 - 9
            } else {
                d * 2
            }
        })
        .sum();
    format!("{body}{}", (10 - sum % 10) % 10)
}

fn card(rng: &mut StdRng) -> String {
    let (prefix, n) =
        *[("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("37", 15), ("6011", 16), ("3530", 16)]
            .choose(rng)
            .unwrap();
    let plain = with_luhn(&format!("{prefix}{}", string(rng, DIGITS, n - 1 - prefix.len())));
    let separator = pick(rng, &["", " ", "-"]);
    let cuts: &[usize] = if n == 15 { &[4, 10] } else { &[4, 8, 12] };
    let mut out = String::new();
    for (i, c) in plain.chars().enumerate() {
        if cuts.contains(&i) {
            out += separator;
        }
        out.push(c);
    }
    out
}

fn ipv4(rng: &mut StdRng) -> String {
    let first = loop {
        let first = rng.random_range(1..224);
        if first != 127 {
            break first;
        }
    };
    format!(
        "{first}.{}.{}.{}",
        rng.random_range(0..256),
        rng.random_range(0..256),
        rng.random_range(0..256)
    )
}

fn ipv6(rng: &mut StdRng) -> String {
    let mut group = || format!("{:x}", rng.random_range(0x100..0xffff));
    let (a, b, c, d) = (group(), group(), group(), group());
    match rng.random_range(0..3) {
        0 => format!("2001:db8::{a}:{b}"),
        1 => format!("fe80::{a}:{b}:{c}:{d}"),
        _ => format!("2001:db8:{a}:{b}:{c}:{d}:1:2"),
    }
}

fn national_id(rng: &mut StdRng) -> String {
    let weighted = |d: &str, w: &[u32]| -> u32 {
        d.chars().zip(w).map(|(c, w)| c.to_digit(10).unwrap() * w).sum()
    };
    let (month, day) = (rng.random_range(1..13), rng.random_range(1..29));
    match rng.random_range(0..9) {
        0 => format!(
            "{:03}-{:02}-{:04}",
            rng.random_range(1..600),
            rng.random_range(1..99),
            rng.random_range(1..9999)
        ),
        1 => {
            let n: u32 = rng.random_range(10_000_000..99_999_999);
            format!("{n}{}", &"TRWAGMYFPDXBNJZSQVHLCKE"[(n % 23) as usize..][..1])
        }
        2 => {
            let n: u32 = rng.random_range(1_000_000..9_999_999);
            format!("X{n}{}", &"TRWAGMYFPDXBNJZSQVHLCKE"[(n % 23) as usize..][..1])
        }
        3 => {
            let body =
                format!("2{:02}{month:02}{}", rng.random_range(0..99), string(rng, DIGITS, 8));
            format!("{body}{:02}", 97 - body.parse::<u64>().unwrap() % 97)
        }
        4 => {
            let body = format!(
                "{:02}{month:02}{day:02}{}",
                rng.random_range(0..99),
                string(rng, DIGITS, 4)
            );
            let sum = weighted(&body, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3]);
            format!("{body}{}", (10 - sum % 10) % 10)
        }
        5 => {
            let body = format!("1{}2", string(rng, DIGITS, 7));
            let first = weighted(&body, &[10, 9, 8, 7, 6, 5, 4, 3, 2]) * 10 % 11 % 10;
            let body = format!("{body}{first}");
            let second = weighted(&body, &[11, 10, 9, 8, 7, 6, 5, 4, 3, 2]) * 10 % 11 % 10;
            format!("{}.{}.{}-{}{second}", &body[..3], &body[3..6], &body[6..9], first)
        }
        6 => {
            let body = format!(
                "110101{}{month:02}{day:02}{}",
                rng.random_range(1940..2010),
                string(rng, DIGITS, 3)
            );
            let sum = weighted(&body, &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]);
            format!("{body}{}", &"10X98765432"[(sum % 11) as usize..][..1])
        }
        7 => {
            let (date, serial) = (
                format!("{day:02}{month:02}{:02}", rng.random_range(0..99)),
                string(rng, DIGITS, 3),
            );
            let rest = format!("{date}{serial}").parse::<u64>().unwrap() % 31;
            format!("{date}-{serial}{}", &"0123456789ABCDEFHJKLMNPRSTUVWXY"[rest as usize..][..1])
        }
        _ => {
            let date = format!("{:02}{month:02}{day:02}", rng.random_range(0..99));
            let body = with_luhn(&format!("{date}{}", string(rng, DIGITS, 3)));
            format!("{}-{}", &body[..6], &body[6..])
        }
    }
}

fn api_key(rng: &mut StdRng) -> String {
    let shapes: [(&str, usize); 14] = [
        ("sk-", 48),
        ("sk-proj-", 120),
        ("sk-ant-api03-", 90),
        ("sk_live_", 24),
        ("ghp_", 36),
        ("gho_", 36),
        ("github_pat_", 82),
        ("glpat-", 20),
        ("AIza", 35),
        ("hf_", 34),
        ("npm_", 36),
        ("xoxb-", 40),
        ("pypi-", 90),
        ("AKIA", 16),
    ];
    let (prefix, n) = *shapes.choose(rng).unwrap();
    let alphabet = if prefix == "AKIA" { "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" } else { ALNUM };
    format!("{prefix}{}", string(rng, alphabet, n))
}

fn jwt(rng: &mut StdRng) -> String {
    let head = pick(rng, &["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "eyJhbGciOiJSUzI1NiJ9"]);
    format!("{head}.eyJ{}.{}", string(rng, ALNUM, 60), string(rng, ALNUM, 43))
}

fn private_key(rng: &mut StdRng) -> String {
    let kind = pick(rng, &["RSA ", "EC ", "", "OPENSSH ", "ENCRYPTED "]);
    let newline = pick(rng, &["\n", "\\n"]);
    let lines: Vec<String> = (0..6).map(|_| string(rng, ALNUM, 64)).collect();
    let body = lines.join(newline);
    format!(
        "-----BEGIN {kind}PRIVATE KEY-----{newline}{body}{newline}-----END {kind}PRIVATE KEY-----"
    )
}

fn password(rng: &mut StdRng) -> String {
    format!(
        "{}{}{}",
        string(rng, ALNUM, 7),
        pick(rng, &["!", "#", "9", "_"]),
        rng.random_range(10..99)
    )
}

fn userinfo(rng: &mut StdRng) -> String {
    format!("{}:{}", pick(rng, &["admin", "bob", "svc-x", "root"]), string(rng, ALNUM, 12))
}

/// Texts in which nothing is to be found.
pub fn harmless(seed: u64) -> Vec<String> {
    let rng = &mut StdRng::seed_from_u64(seed ^ 1);
    let fixed = [
        "The meeting is on 2024-05-17 at 14:30:00.",
        "commit 3f2a9c1d4e5b6a7f8091a2b3c4d5e6f708192a3b",
        "uuid 550e8400-e29b-41d4-a716-446655440000",
        "version 10.0.19041.1 of Windows",
        "pi is 3.14159265358979",
        "ISBN 978-3-16-148410-0",
        "RFC 2119, section 4.2.1.3",
        "git@github.com:rust-lang/rust.git",
        "@username on chat",
        "npm i @types/node@18.11.9",
        "logo@2x.png",
        "std::collections::HashMap",
        "a::b::c",
        "10:20:30 elapsed",
        "MAC 00:1A:2B:3C:4D:5E",
        "aspect ratio 16:9",
        "1,234,567.89 EUR",
        "0.123456789",
        "1700000000000 ms",
        "order no. 4111111111111112",
        "IBAN DE00 3704 0044 0532 0130 00 is wrong",
        "127.0.0.1:8080",
        "0.0.0.0",
        "::1",
        "max_tokens: 1234567890",
        "token: undefined",
        "password: ********",
        "password: <your-password>",
        "api_key = os.environ['OPENAI_API_KEY']",
        "secret: ${SECRET}",
        "Authorization: Bearer $TOKEN",
        "sk-learn-pipelines-for-beginners-and-experts",
        "the bearer of this letter",
        "basic understanding of things",
        "eyJ is how a token begins",
        "-----BEGIN CERTIFICATE-----",
        "http://example.com/a?page=2&sort=name",
        "https://example.com:8443/path",
        "mailto: somebody",
        "100-200-300",
        "12-34-56",
        "1-800-FLOWERS",
        "2024/05/17 10:00",
        "17.05.2024 10",
        "size 1920x1080",
        "range 100..200",
        "x = 555 - 1234",
        "scores 21-15-9",
        "chapter 1.2.3",
        "v1.2.3.4",
        "release 1.2.3.4",
        "1e10 and 2.5e-3",
        "#ff8800",
        "0x1f 0xdeadbeef",
        "A4 B5 C6",
        "SELECT * FROM t WHERE id = 12345678",
        "key: value",
        "pwd",
        "token count",
        "my password is a secret",
        "key=value&other=thing",
        "the secret: never give up",
        "passwords: rotate them",
        "3 x 4 = 12; 12 / 4 = 3",
        "bit.ly/3abcDEF",
        "lat 52.520008, lon 13.404954",
        "T+10:00",
        "UTC+02:00",
        "+10 points",
        "-5 +3",
        "+1 for that",
        "call me maybe",
        "5 000 000 people",
        "1 000 000 000 dollars",
        "tel-aviv",
        "AB12",
        "GB is a country",
    ];
    let mut texts: Vec<String> = fixed.iter().map(|text| (*text).to_owned()).collect();
    for _ in 0..26 {
        texts.push(format!("sha {}", string(rng, "0123456789abcdef", 40)));
        texts.push(format!(
            "built on 20{:02}-{:02}-{:02}",
            rng.random_range(0..30),
            rng.random_range(1..13),
            rng.random_range(1..29)
        ));
        texts.push(format!("order {} shipped", rng.random_range(100_000..9_999_999)));
        texts.push(format!(
            "took {}.{} s, {} rows",
            rng.random_range(0..99),
            rng.random_range(0..999_999),
            rng.random_range(0..1_000_000)
        ));
        texts.push(format!(
            "app {}.{}.{}",
            rng.random_range(0..99),
            rng.random_range(0..99),
            rng.random_range(0..999)
        ));
        texts.push(format!("at 17{} (unix)", string(rng, DIGITS, 8)));
    }
    texts
}
