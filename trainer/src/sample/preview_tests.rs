//! A preview shows what the next round will do, and changes nothing.

use super::*;
use crate::testing::lab::Lab;
use crate::testing::policies;
use hone_shared::store::Split;

const CORRECTION: &str = "Too long. Answer in one short sentence.";

#[tokio::test]
async fn a_preview_is_what_the_round_draws_and_leaves_the_store_as_it_was() {
    let mut lab = Lab::new();
    for i in 0..7 {
        lab.add(&format!("s{i}"), &format!("What is {i}?"), "the rain in the hills", CORRECTION);
    }
    lab.add("s7", "What is 7?", "a", CORRECTION);
    let set = policies(&[]);
    lab.judge(&set).await;
    let registry = Registry::open(lab.data.registry_dir()).unwrap();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    let secret = lab.data.secret().unwrap();
    let read_only = Store::open_read_only(&lab.data.store_path()).unwrap();
    let source =
        Source { store: &read_only, registry: &registry, renderer: &renderer, secret: &secret };
    let before = lab.store.counts().unwrap();
    let shown = source.preview(&set, "chat").unwrap();
    assert_eq!(lab.store.counts().unwrap(), before);
    assert_eq!(shown.fates.len(), 8);
    let count = |split| shown.fates.iter().filter(|fate| fate.split == Some(split)).count();
    assert_eq!((count(Split::Train), count(Split::Holdout)), (5, 2));
    let short = shown.fates.iter().find(|fate| fate.dropped.is_some()).unwrap();
    assert_eq!(short.dropped.unwrap().to_string(), "too_short");
    assert_eq!(source.preview(&set, "chat").unwrap().batch, shown.batch);
    assert!(matches!(source.preview(&set, "nobody"), Err(PreviewError::Route(_))));
}

#[tokio::test]
async fn a_session_that_taught_never_tests_and_one_that_tested_never_teaches() {
    let mut lab = Lab::new();
    let set = policies(&[]);
    let registry = Registry::open(lab.data.registry_dir()).unwrap();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    let secret = lab.data.secret().unwrap();
    let mut fell = std::collections::BTreeMap::new();
    for round in 0..3 {
        for i in 0..8 {
            let question = format!("What is {i} in {round}?");
            lab.add(&format!("s{}", i + round), &question, "the rain in the hills", CORRECTION);
        }
        lab.judge(&set).await;
        let store = &lab.store;
        let source = Source { store, registry: &registry, renderer: &renderer, secret: &secret };
        let drawn = source.preview(&set, "chat").unwrap();
        assert!(!drawn.batch.holdout.is_empty() && !drawn.batch.train.is_empty());
        for fate in drawn.fates {
            let Some(split) = fate.split else { continue };
            let then = fell.insert(fate.session_id.clone(), split);
            assert!(then.is_none() || then == Some(split), "round {round}: {}", fate.session_id);
        }
        let id = format!("00000000-0000-7000-8000-00000000000{round}");
        let row = crate::testing::lab::round(&id, "chat");
        store.begin_round(&row).unwrap();
        store.set_round_turns(&id, &drawn.batch.provenance()).unwrap();
    }
}
