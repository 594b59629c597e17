//! Redaction of values, keys and nested JSON.

use super::*;
use serde_json::json;

fn all() -> Redactor {
    let rule = |(detector, name): &(Detector, &str)| {
        let search = Search::Detector(*detector);
        Rule::new(name, search, &format!("[{name}]"), AppliesTo::default())
    };
    // Credentials first, telephone numbers last, as in the built-in files.
    let order = |detector: Detector| match detector {
        Detector::Credential | Detector::ApiKey | Detector::Jwt | Detector::PrivateKey => 0,
        Detector::Phone => 2,
        _ => 1,
    };
    let mut detectors: Vec<_> = Detector::ALL.to_vec();
    detectors.sort_by_key(|(detector, _)| order(*detector));
    Redactor::new(detectors.iter().map(rule).collect())
}

fn redacted(text: &str) -> String {
    let found = all().text(Side::Request, text, &mut Counts::new());
    found.unwrap_or_else(|| text.to_owned())
}

#[test]
fn what_is_found_is_replaced_and_the_words_around_it_stay() {
    for (text, wanted) in [
        ("write to jo.doe+x@mail.example.org, please", "write to [email], please"),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC X", "IBAN [iban] BIC X"),
        ("card 4111 1111 1111 1111 exp", "card [credit_card] exp"),
        ("call +49 30 901820-0 now", "call [phone] now"),
        ("from 203.0.113.7:443 to", "from [ip_address]:443 to"),
        ("at 2001:db8::8a2e:370:7334.", "at [ip_address]."),
        ("key sk-abcDEF0123456789abcdEFGH done", "key [api_key] done"),
        ("postgres://bob:hunter2@db/x", "postgres://[credential]@db/x"),
        ("password = \"Tr0ub4dor&3\"", "password = \"[credential]&3\""),
        ("Authorization: Bearer abcd1234efgh5678", "Authorization: Bearer [credential]"),
        ("ssn 123-45-6789.", "ssn [national_id]."),
    ] {
        assert_eq!(redacted(text), wanted);
    }
}

#[test]
fn what_only_looks_alike_stays() {
    for text in [
        "version 10.2.3.4 of 2024-05-01 12:30:45, 192 x 168",
        "std::vector<int> a::b, 00:1A:2B:3C:4D:5E",
        "sk-learn-pipelines-are-useful-things and max_tokens = 1234567890ab",
        "icon@2x.png git@github.com:org/repo.git @user",
        "order 4111111111111112, IBAN DE00370400440532013000",
        "password: <your password here> token: $GITHUB_TOKEN",
        "the tokens are counted; secret sauce; bearer of news",
    ] {
        assert_eq!(redacted(text), text);
    }
}

#[test]
fn redacting_twice_is_redacting_once() {
    let text = "a@b.org +49 30 12345678 password=hunter2hunter2 sk-abcDEF0123456789abcdEFGH";
    let once = redacted(text);
    assert_ne!(once, text);
    assert_eq!(redacted(&once), once);
}

#[test]
fn json_is_searched_in_values_keys_and_in_strings_that_are_json() {
    let mut value = json!({
        "messages": [{"content": [{"type": "text", "text": "mail a@b.org"}]}],
        "metadata": {"c@d.org": 1, "api_key": "abcdef123456"},
        "arguments": "{\"to\":\"x\\u0040y.org\",\"n\":1}",
        "untouched": "{ \"n\" :  1 }",
    });
    let mut counts = Counts::new();
    assert!(all().value(Side::Request, &mut value, &mut counts));
    assert_eq!(value["messages"][0]["content"][0]["text"], "mail [email]");
    assert_eq!(value["metadata"], json!({"[email]": 1, "api_key": "[credential]"}));
    assert_eq!(value["arguments"], "{\"to\":\"[email]\",\"n\":1}");
    assert_eq!(value["untouched"], "{ \"n\" :  1 }");
    assert_eq!(counts, Counts::from([("email".into(), 3), ("credential".into(), 1)]));
}

#[test]
fn a_rule_of_one_side_leaves_the_other_alone() {
    let only = AppliesTo { not_response: true, ..AppliesTo::default() };
    let rule = Rule::new("e", Search::Detector(Detector::Email), "[e]", only);
    let redactor = Redactor::new(vec![rule]);
    let mut counts = Counts::new();
    assert_eq!(redactor.text(Side::Request, "a@b.org", &mut counts).as_deref(), Some("[e]"));
    assert_eq!(redactor.text(Side::Response, "a@b.org", &mut counts), None);
}

#[test]
fn hostile_texts_take_linear_time() {
    // A quadratic search would need minutes; no time is asserted, the test would not end.
    for piece in ["1 ", "a@", "sk-", "1.", "0:", "password=", "-----BEGIN PRIVATE KEY-----", "+1 "]
    {
        let text = piece.repeat((256 << 10) / piece.len());
        let _ = redacted(&text);
    }
}

#[test]
fn every_built_in_shape_compiles() {
    for (detector, name) in Detector::ALL {
        assert!(detector.shapes().iter().all(|shape| shape.regex().is_some()), "{name}");
    }
}

#[test]
fn what_is_searched_for_nothing_is_what_nothing_is_found_in() {
    let texts = [
        "role",
        "user",
        "assistant",
        "a@b.org",
        "1.2",
        "AKIAABCDEFGHIJKLMNOP",
        "hello world",
        "ask +49 30 12345678",
        "api_key",
        "{\"to\":\"x\\u0040y.org\"}",
        "-----BEGIN PRIVATE KEY-----",
        "12345678901",
        "see std::vector",
        "password=hunter2hunter2",
        "caf\u{e9}",
        "",
    ];
    let redactor = all();
    let slowly = Redactor { plain_bytes_min: 0, ..redactor.clone() };
    let own =
        Rule::new("own", Search::Pattern(Regex::new("b").unwrap()), "[own]", AppliesTo::default());
    assert_eq!(Redactor::new(vec![own]).plain_bytes_min, 0, "a pattern may be in any text");
    let mut values: Vec<serde_json::Value> = Vec::new();
    for a in texts {
        for end in (0..=a.len()).filter(|end| a.is_char_boundary(*end)) {
            let (fast, slow) = (&mut Counts::new(), &mut Counts::new());
            let cut = &a[..end];
            let found = redactor.text(Side::Request, cut, fast);
            assert_eq!(found, slowly.text(Side::Request, cut, slow), "{cut:?}");
            assert_eq!(fast, slow);
        }
        values
            .extend(texts.map(|b| json!({"role": a, "content": [{"text": b}, {b: {a: [b, 1]}}]})));
        values.extend(texts.map(|b| json!({a: b, "api_key": a})));
    }
    for value in values {
        let mut redacted = value.clone();
        let changed = redactor.value(Side::Request, &mut redacted, &mut Counts::new());
        assert_eq!(redactor.finds(Side::Request, &value), changed, "{value}");
        assert_eq!(redacted != value, changed, "{value}");
    }
}

#[test]
fn marks_are_counted_however_long_the_text_is() {
    for len in [0, 1, 15, 16, 254, 255, 256, 511, 70_000] {
        let facts = Facts::of(&"@".repeat(len));
        let wanted = format!("bytes: {len}, digits: 0, ats: {len}, colons: 0");
        assert!(format!("{facts:?}").contains(&wanted), "{facts:?}");
    }
}
