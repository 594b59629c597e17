//! What reading and linking cost, by the size of the body: `cargo run --release -p hone-shared
//! --example measure_wire`. Prints milliseconds, the best of five.
//!
//! Invariant: linear in the body; bombs cost no more than their caps.

use std::hint::black_box;
use std::time::Instant;

use hone_shared::link::{History, LinkKey};
use hone_shared::wire::coding::inflate;
use hone_shared::wire::{Named, parse_request};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

fn main() {
    let key = LinkKey::new(&[7; 32], "tenant");
    println!("{:>10} {:>9} {:>10} {:>10}", "bytes", "messages", "parse ms", "link ms");
    for (messages, chars) in [(2, 800), (20, 800), (100, 2_500), (400, 4_000), (1_000, 16_500)] {
        let body = conversation(messages, chars).to_string().into_bytes();
        let Ok(view) = parse_request(PATH, None, &body) else { continue };
        let parse = best(|| drop(black_box(parse_request(PATH, None, &body))));
        let link = best(|| {
            drop(black_box(History::of(&key, "chat", &Named::default(), &view.messages)));
        });
        println!("{:>10} {messages:>9} {parse:>10.3} {link:>10.3}", body.len());
    }
    let keys: Vec<String> = (0..1_100_000).map(|n| format!("\"{n}\":0")).collect();
    let keys = format!("{{{}}}", keys.join(","));
    let deep = "[".repeat(10_000);
    for (name, body) in [("1.1 M keys", keys.as_str()), ("10,000 deep", deep.as_str())] {
        let refused = parse_request(PATH, None, body.as_bytes()).is_err();
        let ms = best(|| drop(black_box(parse_request(PATH, None, body.as_bytes()))));
        println!("{name}: {ms:.3} ms, refused: {refused}");
    }
    for coding in ["gzip", "zstd", "br"] {
        let bomb = bomb(coding);
        let refused = inflate(Some(coding), &bomb).is_err();
        let ms = best(|| drop(black_box(inflate(Some(coding), &bomb))));
        println!("{coding} bomb of {} bytes: {ms:.1} ms, refused: {refused}", bomb.len());
    }
}

fn conversation(messages: usize, chars: usize) -> Value {
    let text = |at: usize| {
        let words = "the quick brown fox; \"jumps\"\nover 1,000 lazy dogs — ";
        format!("{at} {}", words.repeat(chars / words.len() + 1))
    };
    let message = |at: usize| {
        let role = if at.is_multiple_of(2) { "user" } else { "assistant" };
        json!({"role": role, "content": text(at)})
    };
    json!({"model": "m", "messages": (0..messages).map(message).collect::<Vec<_>>()})
}

fn bomb(coding: &str) -> Vec<u8> {
    use std::io::Write;
    let zeros = vec![b' '; 256 << 20];
    let mut out = Vec::new();
    let written = match coding {
        "gzip" => {
            let level = flate2::Compression::fast();
            flate2::write::GzEncoder::new(&mut out, level).write_all(&zeros)
        }
        "zstd" => zstd::stream::copy_encode(&zeros[..], &mut out, 1),
        _ => brotli::CompressorWriter::new(&mut out, 4096, 1, 22).write_all(&zeros),
    };
    if let Err(error) = written {
        println!("{coding}: {error}");
    }
    out
}

fn best(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64() * 1e3
    };
    (0..5).map(time).fold(f64::INFINITY, f64::min)
}
