//! The registry on a real directory: publication, damage, aliases, races and what a crash leaves behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hone_shared::registry::{
    AdapterConfig, AliasWatch, CONFIG_FILE, GenerationDir, ManifestDraft, PREVIOUS_MAX, Registry,
    RegistryError, WEIGHTS_FILE,
};
use hone_shared::turn::Generation;
use serde_json::json;
use sha2::{Digest, Sha256};

fn config() -> AdapterConfig {
    AdapterConfig::new("tiny", 2, 4.0).unwrap()
}

/// A well-formed safetensors file with one LoRA pair filled with `byte`.
fn weights(byte: u8) -> Vec<u8> {
    let name =
        |which| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{which}.weight");
    let header = json!({
        "__metadata__": {"format": "pt"},
        name("A"): {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        name("B"): {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 64]},
    })
    .to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&[byte; 64]);
    file
}

fn open() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path().join("registry")).unwrap();
    (dir, registry)
}

fn publish(registry: &Registry, byte: u8) -> Generation {
    registry.publish(&config(), &weights(byte), ManifestDraft::default()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_generation_is_named_by_the_hash_of_config_and_weights() {
    let (_dir, registry) = open();
    let draft =
        ManifestDraft { route: "chat".into(), metrics: json!({"kl": 0.1}), ..Default::default() };
    let generation = registry.publish(&config(), &weights(7), draft.clone()).unwrap();
    let mut hasher = Sha256::new();
    hasher.update(config().bytes());
    hasher.update(weights(7));
    assert_eq!(generation.as_str(), hex::encode(hasher.finalize()));
    let GenerationDir { path, manifest, .. } = registry.get(&generation).unwrap();
    assert_eq!(fs::read(path.join(CONFIG_FILE)).unwrap(), config().bytes());
    assert_eq!(fs::read(path.join(WEIGHTS_FILE)).unwrap(), weights(7));
    assert_eq!(
        (manifest.rank, manifest.alpha, manifest.weights_bytes),
        (2, 4.0, weights(7).len() as u64)
    );
    assert_eq!(manifest.draft, draft);
    assert_eq!(manifest.generation, generation);
}

#[test]
fn publishing_the_same_content_again_changes_nothing() {
    let (dir, registry) = open();
    let first = publish(&registry, 1);
    let manifest = registry.get(&first).unwrap().manifest;
    let file = dir.path().join("w.safetensors");
    fs::write(&file, weights(1)).unwrap();
    let again = ManifestDraft { route: "other".into(), ..Default::default() };
    assert_eq!(registry.publish(&config(), &file, again).unwrap(), first);
    assert_eq!(registry.get(&first).unwrap().manifest, manifest);
    assert_eq!(registry.list().unwrap().len(), 1);
    assert_ne!(publish(&registry, 2), first);
    assert_eq!(registry.list().unwrap().len(), 2);
}

#[test]
fn many_publishers_at_once_all_succeed() {
    let (_dir, registry) = open();
    let threads: Vec<_> = (0..8u8)
        .map(|i| {
            let registry = Registry::open(registry.path()).unwrap();
            std::thread::spawn(move || publish(&registry, i / 2))
        })
        .collect();
    let mut published: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    published.sort();
    published.dedup();
    assert_eq!(published.len(), 4);
    for generation in &published {
        registry.verify(generation).unwrap();
    }
    assert_eq!(registry.list().unwrap().len(), 4);
}

#[test]
fn adapters_that_an_engine_would_refuse_are_refused_with_the_reason() {
    let (dir, registry) = open();
    let base = || -> serde_json::Value { serde_json::from_slice(config().bytes()).unwrap() };
    let cases: [(&str, serde_json::Value, &str); 7] = [
        ("bias", json!("all"), "bias"),
        ("r", json!(0), "rank 0"),
        ("r", json!(100_000), "rank 100000"),
        ("use_dora", json!(true), "DoRA"),
        ("peft_type", json!("IA3"), "IA3"),
        ("rank_pattern", json!({"q_proj": 4}), "uniform"),
        ("target_modules", json!(["q_proj", "lm_head"]), "lm_head"),
    ];
    for (key, value, said) in cases {
        let mut changed = base();
        changed[key] = value;
        let error = AdapterConfig::from_bytes(changed.to_string().into_bytes()).unwrap_err();
        assert!(error.to_string().contains(said), "{key}: {error}");
    }
    let whole = weights(1);
    let stranger = String::from_utf8_lossy(&whole).replace("q_proj", "x_proj").into_bytes();
    for bad in [&whole[..whole.len() - 1], &whole[..20], &[], &[255; 100], &stranger] {
        let refused = registry.publish(&config(), bad, ManifestDraft::default());
        assert!(matches!(refused, Err(RegistryError::Adapter(_))), "{refused:?}");
    }
    let missing: PathBuf = dir.path().join("nothing");
    let refused = registry.publish(&config(), &missing, ManifestDraft::default());
    assert!(matches!(refused, Err(RegistryError::Io { .. })));
    assert_eq!(names(registry.path()), [".publish.lock", "aliases"], "nothing half-made stays");
}

#[test]
fn damage_is_found_and_a_damaged_generation_is_never_served() {
    let (_dir, registry) = open();
    let generation = publish(&registry, 1);
    let path = registry.get(&generation).unwrap().path.join(WEIGHTS_FILE);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(registry.verify(&generation), Err(RegistryError::Damaged { .. })));
    let moved = registry.move_alias("chat", &Generation::base(), &generation, "try");
    assert!(matches!(moved, Err(RegistryError::Damaged { .. })));
    assert!(registry.alias("chat").unwrap().generation.is_base());
}

#[test]
fn what_a_crash_leaves_behind_is_ignored_and_swept() {
    let (_dir, registry) = open();
    let generation = publish(&registry, 1);
    // Killed in the middle of writing, and just before the rename.
    let half = registry.path().join(".tmp-half");
    fs::create_dir(&half).unwrap();
    fs::write(half.join(CONFIG_FILE), "{").unwrap();
    let whole = registry.path().join(".tmp-whole");
    fs::create_dir(&whole).unwrap();
    for name in [CONFIG_FILE, WEIGHTS_FILE, "manifest.json"] {
        let from = registry.get(&generation).unwrap().path.join(name);
        fs::copy(from, whole.join(name)).unwrap();
    }
    // Killed in the middle of moving an alias.
    fs::write(registry.path().join("aliases/chat.json.tmp"), "{\"al").unwrap();
    assert_eq!(registry.list().unwrap().len(), 1);
    assert!(registry.aliases().unwrap().is_empty());
    let registry = Registry::open(registry.path()).unwrap();
    assert!(!half.exists() && !whole.exists());
    registry.move_alias("chat", &Generation::base(), &generation, "after the crash").unwrap();
    assert_eq!(registry.aliases().unwrap().len(), 1);
}

#[test]
fn an_alias_moves_only_from_where_the_mover_believes_it_to_be() {
    let (_dir, registry) = open();
    let (a, b) = (publish(&registry, 1), publish(&registry, 2));
    let base = Generation::base();
    assert_eq!(registry.alias("chat").unwrap().sequence, 0);
    let state = registry.move_alias("chat", &base, &a, "round 1").unwrap();
    assert_eq!((state.sequence, state.previous.as_slice()), (1, &[base.clone()][..]));
    let error = registry.move_alias("chat", &base, &b, "late").unwrap_err();
    assert!(matches!(&error, RegistryError::Moved { current, .. } if *current == a), "{error}");
    let state = registry.move_alias("chat", &a, &b, "round 2").unwrap();
    assert_eq!(state.previous, [a.clone(), base.clone()]);
    let state = registry.move_alias("chat", &b, &base, "rollback").unwrap();
    assert_eq!(state.previous, [b.clone(), a, base.clone()]);
    assert_eq!(registry.alias("chat").unwrap(), state);
    let nobody = Generation::parse(&"0".repeat(64)).unwrap();
    let error = registry.move_alias("chat", &base, &nobody, "").unwrap_err();
    assert!(matches!(error, RegistryError::UnknownGeneration(_)));
    assert!(matches!(registry.get(&base), Err(RegistryError::IsBase)));
}

#[test]
fn of_two_movers_exactly_one_wins_and_history_is_capped() {
    let (_dir, registry) = open();
    let both = [publish(&registry, 1), publish(&registry, 2)];
    let wins: usize = (0..4)
        .map(|i| {
            let (registry, to) = (registry.clone(), both[i % 2].clone());
            std::thread::spawn(move || {
                registry.move_alias("chat", &Generation::base(), &to, "race").is_ok()
            })
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|t| usize::from(t.join().unwrap()))
        .sum();
    assert_eq!(wins, 1);
    for i in 0..PREVIOUS_MAX + 5 {
        let now = registry.alias("chat").unwrap().generation;
        registry.move_alias("chat", &now, &both[i % 2], "again").unwrap();
    }
    let state = registry.alias("chat").unwrap();
    assert_eq!(state.previous.len(), PREVIOUS_MAX);
    assert_eq!(state.sequence, PREVIOUS_MAX as u64 + 6);
}

#[test]
fn names_cannot_leave_the_registry() {
    let (_dir, registry) = open();
    for name in ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a b", "ä", &"x".repeat(65)] {
        let error = registry.alias(name).unwrap_err();
        assert!(matches!(error, RegistryError::AliasName(_)), "{name}");
        let moved = registry.move_alias(name, &Generation::base(), &Generation::base(), "");
        assert!(moved.is_err(), "{name}");
    }
    for name in ["chat", "Chat-2.v_1", "0"] {
        assert!(registry.alias(name).is_ok(), "{name}");
    }
    assert!(Generation::parse("../../etc").is_err());
}

#[test]
fn a_watch_follows_moves_and_keeps_the_last_good_state() {
    let (_dir, registry) = open();
    let generation = publish(&registry, 1);
    let watch = AliasWatch::start(registry.clone(), Duration::from_millis(5)).unwrap();
    assert!(watch.generation("chat").is_base());
    registry.move_alias("chat", &Generation::base(), &generation, "round").unwrap();
    watch.refresh().unwrap();
    assert_eq!(watch.generation("chat"), generation, "refresh returns after the flip");
    registry.move_alias("chat", &generation, &Generation::base(), "rollback").unwrap();
    let seen = (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        watch.generation("chat").is_base()
    });
    assert!(seen, "polling sees a move by itself");
    fs::write(registry.path().join("aliases/chat.json"), "{").unwrap();
    let error = watch.refresh().unwrap_err();
    assert!(matches!(error, RegistryError::Malformed { .. }), "{error}");
    assert_eq!(watch.current()["chat"].reason, "rollback");
}
