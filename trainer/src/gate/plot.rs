//! A round as a picture: its updates as lines, the gate's numbers as text. SVG, by hand.
//!
//! Invariant: holds numbers and the gate's own sentences, no text of any turn.

use super::Report;
use crate::train::update::Measured;
use std::fmt::Write;

const WIDTH: f64 = 220.0;
const HEIGHT: f64 = 90.0;
const GAP: f64 = 30.0;

/// One number of an update.
type Of = fn(&Measured) -> f64;

/// The picture.
pub fn svg(updates: &[Measured], report: &Report, title: &str) -> String {
    let panels: [(&str, Of); 6] = [
        ("loss", |m| m.loss),
        ("distance to the teacher, nats", |m| m.log_ratio),
        ("KL to the base, nats", |m| m.kl),
        ("entropy, nats", |m| m.entropy),
        ("reply length, tokens", |m| m.reply_tokens_mean),
        ("gradient norm", |m| m.grad_norm),
    ];
    let lines = numbers(report);
    let text_y = 40.0 + 2.0 * (HEIGHT + GAP);
    let (width, height) = (3.0 * (WIDTH + GAP) + GAP, text_y + 16.0 * lines.len() as f64 + 20.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\"><rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/><text x=\"{GAP}\" y=\"20\" font-weight=\"bold\">{}</text>",
        escape(title)
    );
    for (i, (name, of)) in panels.into_iter().enumerate() {
        let (column, row) = ((i % 3) as f64, (i / 3) as f64);
        let (x, y) = (GAP + column * (WIDTH + GAP), 50.0 + row * (HEIGHT + GAP));
        let values: Vec<f64> = updates.iter().map(of).collect();
        out.push_str(&panel(name, &values, x, y));
    }
    for (i, line) in lines.iter().enumerate() {
        let y = text_y + 16.0 * (i as f64 + 1.0);
        // Writing to a String cannot fail.
        let _ = write!(out, "<text x=\"{GAP}\" y=\"{y}\">{}</text>", escape(line));
    }
    out.push_str("</svg>\n");
    out
}

fn panel(name: &str, values: &[f64], x: f64, y: f64) -> String {
    let finite = values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let label = |text: &str, at: f64| {
        format!("<text x=\"{x}\" y=\"{at}\" fill=\"#444\">{}</text>", escape(text))
    };
    let frame = format!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" \
         stroke=\"#bbb\"/>"
    );
    if low > high {
        return frame + &label(&format!("{name}: nothing"), y - 4.0);
    }
    let span = (high - low).max(1e-12);
    let step = WIDTH / (values.len().max(2) - 1) as f64;
    let point = |(i, v): (usize, &f64)| {
        let v = if v.is_finite() { *v } else { low };
        format!("{:.1},{:.1}", x + step * i as f64, y + HEIGHT * (1.0 - (v - low) / span))
    };
    let points: Vec<String> = values.iter().enumerate().map(point).collect();
    let line = format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"1.5\"/>",
        points.join(" ")
    );
    frame + &line + &label(&format!("{name}: {low:.3} to {high:.3}"), y - 4.0)
}

/// What the gate found, one line each.
fn numbers(report: &Report) -> Vec<String> {
    let (s, n) = (&report.signal, &report.neutral);
    let mut lines = vec![format!("gate {}: {}", report.policy, report.reason())];
    let gains = [
        ("hinted turns", s.hinted_turns, s.hinted_gain),
        ("rejected turns", s.rejected_turns, s.rejected_gain),
        ("approved turns", s.approved_turns, s.approved_gain),
        ("demonstrations", s.demonstrated_turns, s.demonstrated_gain),
    ];
    let measured = gains.into_iter().filter(|(_, turns, _)| *turns > 0);
    lines.extend(
        measured.map(|(what, turns, gain)| format!("{turns} {what}: {gain:+.4} nats/token")),
    );
    lines.push(format!("neutral: KL {:.4} nats, repetition {:.3}", n.kl, n.repetition));
    let pairs = [
        ("ended", n.ended_share, n.ended_share_incumbent),
        ("tokens", n.tokens_mean, n.tokens_mean_incumbent),
        ("refusals", n.refusal_share, n.refusal_share_incumbent),
        ("common phrase", n.phrase_share, n.phrase_share_incumbent),
    ];
    lines.extend(pairs.map(|(what, own, before)| format!("{what}: {own:.2}, before {before:.2}")));
    lines
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Neutral, Signal};

    fn report() -> Report {
        Report {
            passed: false,
            objections: vec!["KL <is> too & large".into()],
            signal: Signal { hinted_turns: 3, hinted_gain: 0.5, ..Signal::default() },
            neutral: Neutral::default(),
            policy: "chat".into(),
        }
    }

    #[test]
    fn a_picture_has_a_line_per_measure_and_the_gates_sentences() {
        let updates: Vec<Measured> =
            (0..4).map(|i| Measured { loss: f64::from(i), ..Measured::default() }).collect();
        let svg = svg(&updates, &report(), "round 1");
        assert_eq!(svg.matches("<polyline").count(), 6);
        assert!(svg.contains("loss: 0.000 to 3.000") && svg.contains("+0.5000 nats/token"));
        assert!(svg.contains("KL &lt;is&gt; too &amp; large"));
    }

    #[test]
    fn without_updates_or_with_numbers_that_are_none_there_still_is_a_picture() {
        let broken = [Measured { loss: f64::NAN, ..Measured::default() }];
        for updates in [&[][..], &broken[..]] {
            let svg = svg(updates, &report(), "x");
            assert!(svg.contains("loss: nothing") && !svg.contains("NaN"), "{svg}");
        }
    }
}
