//! The figures of an evaluation, and the files that it refuses.

use super::*;
use hone_shared::policy::PolicySet;
use serde_json::json;

fn judged(kind: StateKind, label: i8, verdict: Option<i8>) -> Judged {
    Judged {
        id: "x".into(),
        kind,
        detected: kind,
        label,
        verdict,
        source: "rule:x".into(),
        wants: None,
        took: Duration::from_micros(10),
        tokens: 3,
    }
}

#[test]
fn agreement_is_counted_over_all_and_precision_where_the_judge_speaks() {
    let chat = StateKind::Chat;
    let all = [
        judged(chat, 1, Some(1)),
        judged(chat, 1, None),
        judged(chat, -1, Some(-1)),
        judged(chat, -1, Some(1)),
        judged(StateKind::Gui, 0, None),
    ];
    let report = Report::of(&all);
    assert_eq!((report.all.n, report.all.spoke, report.all.tokens), (5, 3, 15));
    assert_eq!(report.all.coverage, 0.6);
    assert_eq!(report.all.precision, Some(2.0 / 3.0));
    assert_eq!(report.all.accuracy, 0.6);
    assert_eq!(report.all.confusion, [[1, 0, 1], [0, 1, 0], [0, 1, 1]]);
    // p_o = 0.6; p_e = (2·1 + 1·2 + 2·2) / 25 = 0.32.
    assert!((report.all.kappa.unwrap() - (0.6 - 0.32) / 0.68).abs() < 1e-12);
    assert_eq!(report.kinds[&StateKind::Gui].precision, None);
    assert_eq!(report.sources["rule:x"], (5, 3));
}

#[test]
fn an_attack_flips_a_verdict_only_if_it_gets_what_it_wants_against_the_truth() {
    let with =
        |label, verdict| Judged { wants: Some(1), ..judged(StateKind::Chat, label, verdict) };
    assert!(with(-1, Some(1)).is_flipped());
    assert!(!with(-1, None).is_flipped() && !with(1, Some(1)).is_flipped());
    assert_eq!(Report::of(&[with(-1, Some(1)), with(0, None)]).all.flips, 1);
}

fn cases(count: usize) -> Vec<Case> {
    let kinds = ["chat", "tool"];
    let case = |at: usize| {
        let kind = kinds[at % kinds.len()];
        serde_json::from_value(json!({"id": format!("{kind}-{at}"), "kind": kind,
            "request": {"messages": [{"role": "user", "content": "Why does it rain?"}]},
            "answer": {"role": "assistant", "content": "Clouds."}, "finish_reason": "stop",
            "next_state": [{"role": "user", "content": "And snow?"}], "label": 0}))
    };
    (0..count).map(|at| case(at).unwrap()).collect()
}

#[test]
fn a_sample_has_so_many_of_each_kind_and_depends_on_its_seed_alone() {
    let names = |seed: u64, turned: usize| -> Vec<String> {
        let mut all = cases(200);
        all.rotate_left(turned);
        let mut names: Vec<_> = sample(all, 7, seed).into_iter().map(|case| case.id).collect();
        names.sort();
        names
    };
    let first = names(1, 0);
    assert_eq!(first.iter().filter(|name| name.starts_with("chat")).count(), 7);
    assert_eq!(first.len(), 14);
    assert_eq!(names(1, 13), first, "whatever the order of the file");
    assert_ne!(names(2, 0), first);
    assert_eq!(sample(cases(4), 7, 1).len(), 4, "all that there are");
}

/// A model that is away when its number comes.
struct Away(std::sync::atomic::AtomicUsize, fn(usize) -> bool);

#[async_trait]
impl Model for Away {
    async fn ask(&self, _: &JudgePolicy, _: &Exchange) -> Result<Said, String> {
        let at = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.1(at) { Err("timed out".into()) } else { Ok(Said { verdict: Some(0), tokens: 9 }) }
    }
}

#[tokio::test]
async fn a_lost_question_is_counted_and_a_model_that_stays_away_ends_it() {
    let set = PolicySet::builtin().unwrap();
    let route = set.route("chat").unwrap();
    let model = Away(Default::default(), |at| at % 3 > 0);
    let found = super::judge(&cases(9), &set, route, Some(&model), false).await.unwrap();
    let lost = found.iter().filter(|one| one.source == "unavailable" && one.verdict.is_none());
    assert_eq!((found.len(), lost.count()), (9, 6));
    let model = Away(Default::default(), |at| at > 3);
    let error = super::judge(&cases(9), &set, route, Some(&model), false).await.unwrap_err();
    assert!(matches!(error, EvalError::Model(why) if why == "timed out"));
}

#[test]
fn a_bad_line_is_an_error_with_its_number() {
    let good = r#"{"id":"a","kind":"chat","request":{"messages":[]},"answer":{"role":"assistant","content":"x"},"finish_reason":"stop","next_state":[],"label":1}"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cases.jsonl");
    for (bad, said) in [
        ("{\"id\":1}".to_owned(), "line 3"),
        (good.replace("\"chat\"", "\"poem\""), "unknown variant `poem`"),
        (good.replace("\"label\":1", "\"label\":2"), "label 2 is none of"),
        (good.replace("\"id\"", "\"idd\""), "unknown field `idd`"),
    ] {
        std::fs::write(&path, format!("{good}\n\n{bad}\n")).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains(said), "{error}");
    }
    std::fs::write(&path, "\n").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("holds no case"));
    assert!(read(&dir.path().join("none")).is_err());
    std::fs::write(&path, good).unwrap();
    assert_eq!(read(&path).unwrap().len(), 1);
}

#[tokio::test]
async fn the_model_is_asked_only_where_the_rules_are_silent() {
    struct Always;
    #[async_trait]
    impl Model for Always {
        async fn ask(&self, _: &JudgePolicy, _: &Exchange) -> Result<Said, String> {
            Ok(Said { verdict: Some(-1), tokens: 7 })
        }
    }
    let case = |next: &str| {
        let line = serde_json::json!({"id": next, "kind": "chat",
            "request": {"messages": [{"role": "user", "content": "Name a river."}]},
            "answer": {"role": "assistant", "content": "The Loire."}, "finish_reason": "stop",
            "next_state": [{"role": "user", "content": next}], "label": 1});
        serde_json::from_value::<Case>(line).unwrap()
    };
    let set = PolicySet::builtin().unwrap();
    let route = set.route("chat").unwrap().clone();
    let cases = [case("Thanks!"), case("And in Spain?")];
    let all = judge(&cases, &set, &route, Some(&Always), true).await.unwrap();
    let found: Vec<_> = all.iter().map(|j| (j.source.as_str(), j.verdict, j.tokens)).collect();
    assert_eq!(found, [("rule:approval", Some(1), 0), ("llm", Some(-1), 7)]);
    let all = judge(&cases, &set, &route, Some(&Always), false).await.unwrap();
    assert!(all.iter().all(|j| j.source == "llm"));
}
