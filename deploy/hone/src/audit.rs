//! `hone audit`: who changed what, when and why.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use hone_shared::clock::now_ms;
use hone_shared::store::{AuditRow, Store};
use serde_json::json;

use crate::cli::AuditArgs;
use crate::serve::data_dir;

/// Runs `hone audit`.
pub fn run(args: &AuditArgs) -> anyhow::Result<()> {
    let data = data_dir(&args.data)?;
    // Rows that wait because the store was away belong to the answer.
    hone_shared::toggle::audit_pending(&data)?;
    let rows = match data.store_path().exists() {
        true => rows(&Store::open_read_only(&data.store_path())?, args.limit, args.before)?,
        false => Vec::new(),
    };
    if args.json {
        let next = rows.last().map(|row| row.id).filter(|_| rows.len() >= args.limit);
        let text = json!({"data": rows, "next": next});
        println!("{}", serde_json::to_string_pretty(&text)?);
        return Ok(());
    }
    if rows.is_empty() {
        println!("nothing was changed");
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["no", "when", "who", "what", "of", "change", "why"]);
    for row in &rows {
        let change = match (&row.before, &row.after) {
            (Some(before), Some(after)) => format!("{before} → {after}"),
            (_, after) => after.clone().unwrap_or_default(),
        };
        let number = row.id.to_string();
        let cells =
            [&number, &ago(row.at_ms), &row.actor, &row.action, &row.target, &change, &row.reason];
        table.add_row(cells);
    }
    println!("{table}");
    Ok(())
}

/// Up to `limit` rows, however few the store gives at once.
fn rows(store: &Store, limit: usize, before: Option<i64>) -> anyhow::Result<Vec<AuditRow>> {
    let mut rows = Vec::new();
    let mut before = before;
    while rows.len() < limit {
        let page = store.audit(limit - rows.len(), before)?;
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        rows.extend(page);
    }
    Ok(rows)
}

/// `5 min ago`.
pub fn ago(at_ms: i64) -> String {
    let seconds = (now_ms() - at_ms).max(0) / 1_000;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_shared::store::AuditEntry;
    use hone_shared::store::audit::AUDIT_LIST_MAX;

    #[test]
    fn more_rows_than_one_listing_gives_are_all_shown() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.sqlite")).unwrap();
        let all = AUDIT_LIST_MAX + 5;
        (0..all).for_each(|_| assert!(store.append_audit(&AuditEntry::default()).unwrap() > 0));
        assert_eq!(rows(&store, all + 5, None).unwrap().len(), all);
        assert_eq!(rows(&store, all - 1, None).unwrap().len(), all - 1);
        assert_eq!(rows(&store, 10, Some(4)).unwrap().len(), 3);
    }
}
