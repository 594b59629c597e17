//! The cork: few writes, nothing held back, order and errors kept.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

/// Counts the writes that reach it.
#[derive(Debug)]
struct Counted {
    stream: tokio::io::DuplexStream,
    writes: Arc<std::sync::atomic::AtomicUsize>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn counted(capacity: usize) -> (Corked<Counted>, tokio::io::DuplexStream, impl Fn() -> usize) {
    let (near, far) = tokio::io::duplex(capacity);
    let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&writes);
    let corked = Corked::new(Counted { stream: near, writes });
    (corked, far, move || count.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_burst_that_is_there_leaves_in_few_writes() {
    let (mut corked, mut far, writes) = counted(1 << 20);
    let (tx, mut rx) = mpsc::channel::<u8>(4);
    // As pingora does it: one side fills a short channel, the other writes and flushes each batch.
    let fill = async move {
        for n in 0..50 {
            tx.send(n).await.unwrap();
        }
    };
    let cork = corked.cork();
    let drain = async move {
        while let Some(n) = rx.recv().await {
            corked.write_all(&[n]).await.unwrap();
            corked.flush().await.unwrap();
        }
        corked
    };
    let (corked, ()) = cork.hold(async { tokio::join!(drain, fill) }).await;
    drop(corked);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    // The runtime takes its turn in between, at most every 64 chunks.
    assert!(read.len() == 50 && writes() <= 3, "{} writes", writes());
}

#[tokio::test]
async fn what_was_written_arrives_while_the_task_waits_for_more() {
    let (mut corked, mut far, _) = counted(1 << 20);
    let (tx, mut rx) = mpsc::channel::<&'static [u8]>(4);
    let cork = corked.cork();
    let task = tokio::spawn(cork.hold(async move {
        while let Some(chunk) = rx.recv().await {
            corked.write_all(chunk).await.unwrap();
            corked.flush().await.unwrap();
        }
        corked.finish();
    }));
    for chunk in [b"one", b"two"] {
        tx.send(chunk).await.unwrap();
        let mut read = [0; 3];
        let read = async { far.read_exact(&mut read).await.map(|_| read) };
        // Nothing else is sent meanwhile, so a chunk that waited for company would hang here.
        let read = tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
        assert_eq!(&read, chunk);
    }
    drop(tx);
    task.await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_its_own_stream_up_and_loses_nothing() {
    let (mut corked, mut far, _) = counted(64);
    let body: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let (sent, progress) = (body.clone(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let (cork, passed) = (corked.cork(), Arc::clone(&progress));
    let task = tokio::spawn(cork.hold(async move {
        for chunk in sent.chunks(100) {
            corked.write_all(chunk).await.unwrap();
            corked.flush().await.unwrap();
            passed.fetch_add(chunk.len(), Ordering::Relaxed);
        }
        corked.shutdown().await.unwrap();
    }));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(progress.load(Ordering::Relaxed) <= 2 * WRITE_BYTES_MAX, "no back-pressure");
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    task.await.unwrap();
    assert_eq!(read, body);
}

#[tokio::test]
async fn writes_larger_than_the_buffer_keep_their_order() {
    let (mut corked, mut far, _) = counted(1 << 20);
    let sizes = [1, 16 << 10, 3, 40 << 10, 16 << 10, 7, 1];
    let pieces: Vec<Vec<u8>> = sizes.iter().zip(0u8..).map(|(len, n)| vec![n; *len]).collect();
    let expected = pieces.concat();
    let cork = corked.cork();
    cork.hold(async move {
        for piece in &pieces {
            corked.write_all(piece).await.unwrap();
        }
        corked.shutdown().await.unwrap();
    })
    .await;
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, expected);
}

#[tokio::test]
async fn a_broken_connection_is_reported_to_the_writer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, _) = listener.accept().await.unwrap();
    drop(far);
    let mut corked = Corked::new(near);
    let cork = corked.cork();
    let writing = cork.hold(async move {
        loop {
            if let Err(error) = corked.write_all(b"x").await {
                return error.kind();
            }
            corked.flush().await.unwrap_or_default();
            tokio::task::yield_now().await;
        }
    });
    let kind = tokio::time::timeout(Duration::from_secs(10), writing).await.unwrap();
    assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind}");
}

#[tokio::test]
async fn the_end_of_a_response_leaves_before_the_look_ends_and_only_once() {
    let (mut corked, mut far, writes) = counted(1 << 20);
    let cork = corked.cork();
    let written = async {
        corked.write_all(b"head").await.unwrap();
        corked.flush().await.unwrap();
        assert_eq!(writes(), 0, "put off");
        response_ends();
        corked.write_all(b" and body").await.unwrap();
        corked.flush().await.unwrap();
        assert_eq!(writes(), 1, "what the proxy does now does not keep the client waiting");
        corked.write_all(b", next").await.unwrap();
        corked.flush().await.unwrap();
        assert_eq!(writes(), 1, "put off again");
        corked
    };
    let corked = cork.hold(written).await;
    assert_eq!(writes(), 2);
    drop(corked);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"head and body, next");
}
