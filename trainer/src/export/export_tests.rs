//! What is exported can be read back, by JSON and by Parquet alike.

use super::*;
use crate::sample::preview::Source;
use crate::testing::lab::Lab;
use crate::testing::policies;
use hone_shared::registry::Registry;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

/// What the reader found, as JSON.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) => (*v).into(),
        Field::Double(v) => (*v).into(),
        Field::Str(v) => v.as_str().into(),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        other => panic!("{other:?}"),
    }
}

fn object(row: &parquet::record::Row) -> Value {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

async fn exported(dir: &Path) -> Vec<Row> {
    let mut lab = Lab::new();
    let set = policies(&[]);
    for i in 0..4 {
        let next = if i == 3 { "Thanks!" } else { "Too long. Answer in one short sentence." };
        lab.add(&format!("s{i}"), &format!("What is <{i}>?"), "the rain in the hills", next);
    }
    lab.judge(&set).await;
    let registry = Registry::open(lab.data.registry_dir()).unwrap();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    let (store, secret) = (&lab.store, lab.data.secret().unwrap());
    let source = Source { store, registry: &registry, renderer: &renderer, secret: &secret };
    let batch = source.preview(&set, "chat").unwrap().batch;
    let exporter = Exporter { store, renderer: &renderer, hint_label: "[hint]" };
    let all = [batch.train, batch.holdout].concat();
    let rows = exporter.rows(&all, "train").unwrap();
    make_dir(dir).unwrap();
    write(dir, "train", &rows).unwrap();
    rows
}

#[tokio::test]
async fn rows_hold_prompt_reply_reward_hint_and_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let rows = exported(&dir.path().join("out")).await;
    assert_eq!(rows.len(), 4);
    let row = rows.iter().find(|row| row.reward < 0.0).unwrap();
    assert!(row.prompt[0].content.starts_with("What is <"));
    // Cut at the route's cap of twelve tokens, as it is trained on.
    let said = &row.completion[0].content;
    assert!(said.len() > 10 && "the rain in the hills".starts_with(said), "{said}");
    assert!(row.prompt_text.contains("<|im_start|>user") && !row.label);
    let hint = row.hint.as_ref().unwrap();
    assert!(row.teacher_prompt[0].content.ends_with("Answer in one short sentence."), "{hint}");
    assert_eq!(row.extra_info.generation, "base");
    let praised = rows.iter().find(|row| row.label).unwrap();
    assert!(praised.teacher_prompt.is_empty() && praised.hint.is_none());
}

#[tokio::test]
async fn json_lines_and_parquet_hold_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let rows = exported(&out).await;
    let text = fs::read_to_string(out.join("train.jsonl")).unwrap();
    let read: Vec<Row> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, rows);
    let file = SerializedFileReader::new(File::open(out.join("train.parquet")).unwrap()).unwrap();
    let mut count = 0;
    for (found, row) in file.get_row_iter(None).unwrap().zip(&rows) {
        let found = object(&found.unwrap());
        let want = serde_json::to_value(row).unwrap();
        for (key, want) in want.as_object().unwrap() {
            assert_eq!(&found[key], want, "{key}");
        }
        count += 1;
    }
    assert_eq!(count, rows.len());
}

#[tokio::test]
async fn nothing_is_written_over_and_the_files_are_their_owners() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    exported(&out).await;
    assert!(matches!(make_dir(&out), Err(ExportError::NotEmpty(_))));
    for name in ["train.jsonl", "train.parquet"] {
        let mode = fs::metadata(out.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn no_samples_are_two_empty_files() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "train", &[]).unwrap();
    let path = dir.path().join("train.parquet");
    let file = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    assert_eq!(file.metadata().file_metadata().num_rows(), 0);
    assert_eq!(fs::read_to_string(dir.path().join("train.jsonl")).unwrap(), "");
}
