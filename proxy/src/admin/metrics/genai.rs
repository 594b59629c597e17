//! The metrics of [`super::super::genai`], in Prometheus' spelling of OpenTelemetry's names.

use super::super::genai::{GenAi, Labels, Series, Tokens};
use super::Page;

type Pairs<'a> = Vec<(&'a str, &'a str)>;

pub(super) fn render(page: &mut Page, genai: &GenAi) {
    let duration = "gen_ai_server_request_duration_seconds";
    let first = "gen_ai_server_time_to_first_token_seconds";
    let usage = "gen_ai_client_token_usage";
    page.head(duration, "histogram", "Stored turns: from arrival to the end.");
    genai.each(|labels, series| page.series(duration, &of(labels), &series.duration));
    page.head(first, "histogram", "Stored streams: from arrival to the first byte of the answer.");
    genai.each(|labels, series| page.series(first, &of(labels), &series.first_token));
    page.head(usage, "histogram", "Stored turns: tokens, as the engine reported them.");
    genai.each(|labels, series| tokens(page, usage, labels, series));
}

fn of(labels: &Labels) -> Pairs<'_> {
    let mut pairs =
        vec![("gen_ai_operation_name", labels.operation), ("gen_ai_request_model", &labels.model)];
    if !labels.error.is_empty() {
        pairs.push(("error_type", labels.error));
    }
    pairs
}

fn tokens(page: &mut Page, name: &str, labels: &Labels, series: &Series) {
    for (kind, tokens) in [("input", &series.input), ("output", &series.output)] {
        if tokens.count > 0 {
            let mut pairs = of(labels);
            pairs.push(("gen_ai_token_type", kind));
            histogram(page, name, &pairs, tokens);
        }
    }
}

fn histogram(page: &mut Page, name: &str, pairs: &Pairs<'_>, tokens: &Tokens) {
    let bucket = format!("{name}_bucket");
    for (limit, below) in tokens.cumulative() {
        let limit = limit.to_string();
        page.labelled(&bucket, &super::with(pairs, &limit), below);
    }
    page.labelled(&bucket, &super::with(pairs, "+Inf"), tokens.count);
    page.labelled(&format!("{name}_sum"), pairs, tokens.sum);
    page.labelled(&format!("{name}_count"), pairs, tokens.count);
}
