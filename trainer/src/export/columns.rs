//! Rows as Parquet columns, with the low-level writer: one row group, three-level lists.
//!
//! Invariant: the columns are written in the order of [`SCHEMA`], which is that of
//! [`Row`](super::Row).

use std::fs::File;
use std::sync::Arc;

use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{Message, Row};

const SCHEMA: &str = "message sample {
    required group prompt (LIST) { repeated group list { required group element {
        required binary role (STRING); required binary content (STRING); } } }
    required group completion (LIST) { repeated group list { required group element {
        required binary role (STRING); required binary content (STRING); } } }
    required binary prompt_text (STRING);
    required binary completion_text (STRING);
    required group prompt_ids (LIST) { repeated group list { required int32 element; } }
    required group completion_ids (LIST) { repeated group list { required int32 element; } }
    required group teacher_prompt (LIST) { repeated group list { required group element {
        required binary role (STRING); required binary content (STRING); } } }
    optional binary teacher_prompt_text (STRING);
    optional binary hint (STRING);
    required group hints (LIST) { repeated group list { required binary element (STRING); } }
    optional binary demonstration (STRING);
    required double reward;
    required boolean label;
    required binary data_source (STRING);
    required binary ability (STRING);
    required group reward_model {
        required binary style (STRING); required binary ground_truth (STRING); }
    required group extra_info {
        required int64 index; required binary split (STRING); required binary turn_id (STRING);
        required binary session_id (STRING); required binary generation (STRING);
        required binary route (STRING); }
}";

/// Writes all rows.
pub(super) fn write(file: File, rows: &[Row]) -> Result<()> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties)?;
    let mut group = writer.next_row_group()?;
    let mut to = Columns(&mut group);
    to.messages(rows.iter().map(|r| r.prompt.as_slice()))?;
    to.messages(rows.iter().map(|r| r.completion.as_slice()))?;
    to.texts(rows.iter().map(|r| r.prompt_text.as_str()))?;
    to.texts(rows.iter().map(|r| r.completion_text.as_str()))?;
    to.ids(rows.iter().map(|r| r.prompt_ids.as_slice()))?;
    to.ids(rows.iter().map(|r| r.completion_ids.as_slice()))?;
    to.messages(rows.iter().map(|r| r.teacher_prompt.as_slice()))?;
    to.options(rows.iter().map(|r| r.teacher_prompt_text.as_deref()))?;
    to.options(rows.iter().map(|r| r.hint.as_deref()))?;
    let hints = rows.iter().map(|r| r.hints.iter().map(|hint| text(hint)).collect());
    to.lists::<ByteArrayType>(hints.collect())?;
    to.options(rows.iter().map(|r| r.demonstration.as_deref()))?;
    to.column::<DoubleType>(&rows.iter().map(|r| r.reward).collect::<Vec<_>>(), None, None)?;
    to.column::<BoolType>(&rows.iter().map(|r| r.label).collect::<Vec<_>>(), None, None)?;
    to.texts(rows.iter().map(|r| r.data_source.as_str()))?;
    to.texts(rows.iter().map(|r| r.ability.as_str()))?;
    to.texts(rows.iter().map(|r| r.reward_model.style.as_str()))?;
    to.texts(rows.iter().map(|r| r.reward_model.ground_truth.as_str()))?;
    let indices: Vec<i64> = rows.iter().map(|r| r.extra_info.index).collect();
    to.column::<Int64Type>(&indices, None, None)?;
    to.texts(rows.iter().map(|r| r.extra_info.split.as_str()))?;
    to.texts(rows.iter().map(|r| r.extra_info.turn_id.as_str()))?;
    to.texts(rows.iter().map(|r| r.extra_info.session_id.as_str()))?;
    to.texts(rows.iter().map(|r| r.extra_info.generation.as_str()))?;
    to.texts(rows.iter().map(|r| r.extra_info.route.as_str()))?;
    group.close()?;
    let written = writer.close()?.file_metadata().num_rows();
    match usize::try_from(written) == Ok(rows.len()) {
        true => Ok(()),
        false => Err(ParquetError::General(format!("{written} rows of {} written", rows.len()))),
    }
}

fn text(text: &str) -> ByteArray {
    ByteArray::from(text.as_bytes().to_vec())
}

/// The next columns of a row group.
struct Columns<'a, 'b>(&'a mut SerializedRowGroupWriter<'b, File>);

impl Columns<'_, '_> {
    fn column<T: DataType>(
        &mut self,
        values: &[T::T],
        definition: Option<&[i16]>,
        repetition: Option<&[i16]>,
    ) -> Result<()> {
        let missing = || ParquetError::General("a column too many".to_owned());
        let mut column = self.0.next_column()?.ok_or_else(missing)?;
        column.typed::<T>().write_batch(values, definition, repetition)?;
        column.close()
    }

    fn texts<'t>(&mut self, values: impl Iterator<Item = &'t str>) -> Result<()> {
        self.column::<ByteArrayType>(&values.map(text).collect::<Vec<_>>(), None, None)
    }

    fn options<'t>(&mut self, values: impl Iterator<Item = Option<&'t str>>) -> Result<()> {
        let values: Vec<Option<&str>> = values.collect();
        let levels: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
        let there: Vec<ByteArray> = values.into_iter().flatten().map(text).collect();
        self.column::<ByteArrayType>(&there, Some(&levels), None)
    }

    /// A required list of required values: level 0 is an empty list, 1 a value.
    fn lists<T: DataType>(&mut self, lists: Vec<Vec<T::T>>) -> Result<()> {
        let (mut definition, mut repetition) = (Vec::new(), Vec::new());
        for list in &lists {
            definition.extend(list.iter().map(|_| 1i16));
            repetition.extend((0..list.len()).map(|i| i16::from(i > 0)));
            if list.is_empty() {
                definition.push(0);
                repetition.push(0);
            }
        }
        let values: Vec<T::T> = lists.into_iter().flatten().collect();
        self.column::<T>(&values, Some(&definition), Some(&repetition))
    }

    fn ids<'t>(&mut self, lists: impl Iterator<Item = &'t [u32]>) -> Result<()> {
        // Token ids are below 2^31 in any vocabulary.
        let lists = lists.map(|ids| ids.iter().map(|id| *id as i32).collect());
        self.lists::<Int32Type>(lists.collect())
    }

    fn messages<'t>(&mut self, lists: impl Iterator<Item = &'t [Message]> + Clone) -> Result<()> {
        let column = |pick: fn(&Message) -> &str| {
            lists.clone().map(|l| l.iter().map(|m| text(pick(m))).collect()).collect::<Vec<_>>()
        };
        let (roles, contents) = (column(|m| &m.role), column(|m| &m.content));
        self.lists::<ByteArrayType>(roles)?;
        self.lists::<ByteArrayType>(contents)
    }
}
