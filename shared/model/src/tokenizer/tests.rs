//! The tiny tokenizer: bytes, specials, and the ends of a reply.

use super::*;
use crate::testing::tiny_model_dir;

fn tiny(edit: impl FnOnce(&Path)) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    tiny_model_dir(dir.path(), 1).unwrap();
    edit(dir.path());
    Tokenizer::from_dir(dir.path()).unwrap()
}

#[test]
fn any_text_survives_encoding_and_decoding() {
    let tokenizer = tiny(|_| {});
    assert_eq!(tokenizer.vocab_size(), 264);
    for text in ["", "plain", "the thing in there", "é 你好 🙂\n\t\u{0}", "\u{feff}x"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert_eq!(tokenizer.encode(" the", false).unwrap(), [263]);
}

#[test]
fn special_tokens_are_one_id_and_can_be_left_out_of_the_text() {
    let tokenizer = tiny(|_| {});
    let ids = tokenizer.encode("<|im_start|>a<|im_end|>", true).unwrap();
    assert_eq!((ids[0], ids[2], ids.len()), (1, 2, 3));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a");
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.token_id("<|nothing|>"), None);
}

#[test]
fn a_reply_ends_at_every_token_that_any_file_names() {
    assert_eq!(tiny(|_| {}).eos_ids(), [2]);
    let tokenizer = tiny(|dir| {
        let text = r#"{"eos_token_id": [0]}"#;
        std::fs::write(dir.join("generation_config.json"), text).unwrap();
        let path = dir.join("tokenizer_config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, config.replace("\"eos_token\":\"<|im_end|>\"", "\"x\":0")).unwrap();
    });
    // 0 by generation_config, 2 by config.json and because the template says <|im_end|>.
    assert_eq!(tokenizer.eos_ids(), [0, 2]);
}

#[test]
fn a_missing_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model_dir(dir.path(), 1).unwrap();
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}
