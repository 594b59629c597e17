//! Faults of the spool: full, gone, replaced, failing; and a disk that really is full.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hone_proxy::ProxyConfig;

use crate::client::{chat, post};
use crate::harness::{PATIENCE, Proxy, eventually, number};
use crate::origin::Origin;
use crate::{balanced, dropped, lock, shed, traffic};

/// A spool and a reserve that a few dozen turns of 2 KB fill.
fn small(cfg: &mut ProxyConfig) {
    cfg.limits.spool_bytes_max = 60_000;
    cfg.limits.reserve_bytes_max = 60_000;
}

async fn health(proxy: &Proxy, wanted: bool) {
    let since = Instant::now();
    while proxy.status().await["spool_degraded"] != wanted {
        assert!(since.elapsed() < PATIENCE, "spool_degraded never became {wanted}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_goes_on_in_the_reserve_and_a_full_reserve_is_counted() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "observe", small).await;
    traffic(&proxy, 0, 1, 10).await;
    proxy.settled(1).await;
    let held = lock(&proxy);
    let mut sent = 1;
    let reserve = proxy.data.reserve_dir();
    while dropped_so_far(&proxy).await == 0 {
        let statuses = traffic(&proxy, sent, 10, 2_000).await;
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        sent += 10;
        assert!(sent < 5_000, "nothing was ever dropped");
    }
    assert!(bytes_under(&reserve) > 30_000, "the reserve was used first");
    drop(held);
    let counters = balanced(&proxy, sent as u64).await;
    let dropped = number(&counters["dropped"]["spool_full"]);
    assert!(dropped > 0 && counters["dropped"].as_object().unwrap().len() == 1, "{counters}");
    let store = hone_shared::store::Store::open_read_only(&proxy.data.store_path()).unwrap();
    let noted = || store.counts().unwrap().dropped.values().sum::<u64>();
    eventually("the loss is noted in the store", || noted() == dropped).await;
    let gap = store.gaps(1).unwrap().remove(0);
    assert!(gap.route == "test" && gap.from_ms > 0 && gap.from_ms <= gap.at_ms, "{gap:?}");
    health(&proxy, false).await;
    traffic(&proxy, sent, 5, 10).await;
    assert_eq!(number(&balanced(&proxy, sent as u64 + 5).await["dropped"]["spool_full"]), dropped);
}

async fn dropped_so_far(proxy: &Proxy) -> u64 {
    crate::dropped(&proxy.status().await["counters"])
}

fn bytes_under(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_under(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_sheds_refuses_what_it_cannot_record_and_serves_again_afterwards() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "observe", |cfg| {
        small(cfg);
        shed(cfg);
    })
    .await;
    traffic(&proxy, 0, 1, 10).await;
    proxy.settled(1).await;
    let held = lock(&proxy);
    let (mut sent, mut refused) = (1, 0);
    while refused < 20 {
        let statuses = traffic(&proxy, sent, 10, 2_000).await;
        sent += 10;
        refused += statuses.iter().filter(|status| **status == 503).count();
        assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
        assert!(sent < 5_000, "nothing was ever shed");
    }
    let ready = proxy.admin_get("/readyz?json").await;
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert!(ready.text().contains("\"shedding\""), "{}", ready.text());
    let seen = origin.seen().len();
    assert_eq!(seen + refused, sent, "what is shed does not reach the engine");
    drop(held);
    let counters = balanced(&proxy, sent as u64).await;
    assert_eq!(number(&counters["dropped"]["shed"]), refused as u64, "{counters}");
    let since = Instant::now();
    while traffic(&proxy, 0, 1, 10).await != [200] {
        assert!(since.elapsed() < PATIENCE, "the route never served again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_directory_that_goes_away_costs_nothing() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    traffic(&proxy, 0, 20, 500).await;
    proxy.settled(20).await;
    std::fs::remove_dir_all(proxy.data.spool_dir()).unwrap();
    assert!(traffic(&proxy, 20, 20, 500).await.iter().all(|status| *status == 200));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // A file in its place: nothing can be made there, even by root.
    let _ = std::fs::remove_dir_all(proxy.data.spool_dir());
    std::fs::write(proxy.data.spool_dir(), b"in the way").unwrap();
    assert!(traffic(&proxy, 40, 20, 500).await.iter().all(|status| *status == 200));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(traffic(&proxy, 60, 20, 500).await.iter().all(|status| *status == 200));
    eventually("the reserve is in use", || bytes_under(&proxy.data.reserve_dir()) > 0).await;
    assert_eq!(balanced(&proxy, 80).await["stored"], 80);
    std::fs::remove_file(proxy.data.spool_dir()).unwrap();
    tokio::time::sleep(Duration::from_millis(4_000)).await;
    traffic(&proxy, 80, 20, 500).await;
    assert_eq!(balanced(&proxy, 100).await["stored"], 100);
    assert!(proxy.data.spool_dir().is_dir(), "the spool is used again");
}

/// A directory in which nothing can be made or deleted, not even by root, until this is dropped.
struct Frozen(std::path::PathBuf);

impl Frozen {
    /// `None` where that cannot be asked for.
    fn new(place: &Path) -> Option<Self> {
        let own = std::fs::read_dir(place).unwrap().next().unwrap().unwrap().path();
        let asked = Command::new("chattr").arg("+i").arg(&own).output();
        asked.is_ok_and(|output| output.status.success()).then_some(Self(own))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_spool_goes_on_in_the_reserve_and_with_a_read_only_reserve_in_memory() {
    let origin = Origin::start().await;
    for reserve_too in [false, true] {
        let proxy = Proxy::start(origin.address, "observe").await;
        let spool = Frozen::new(&proxy.data.spool_dir());
        let reserve = reserve_too.then(|| Frozen::new(&proxy.data.reserve_dir()));
        if spool.is_none() || reserve.as_ref().is_some_and(Option::is_none) {
            println!("skipped: no directory can be made immutable here");
            return;
        }
        assert!(traffic(&proxy, 0, 20, 500).await.iter().all(|status| *status == 200));
        if reserve_too {
            health(&proxy, true).await;
        } else {
            eventually("the reserve is used", || bytes_under(&proxy.data.reserve_dir()) > 0).await;
            assert_eq!(balanced(&proxy, 20).await["stored"], 20);
        }
        drop((spool, reserve));
        assert!(traffic(&proxy, 20, 20, 500).await.iter().all(|status| *status == 200));
        assert_eq!(balanced(&proxy, 40).await["stored"], 40);
        health(&proxy, false).await;
    }
}

/// A tiny file system; `None` where it may not be mounted.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(dir.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_no_request_and_recording_goes_on_once_there_is_room() {
    let Some(mount) = Mount::new(6) else {
        println!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let origin = Origin::start().await;
    let data = hone_shared::data_dir::DataDir::new(mount.0.path().join("data"));
    let proxy = Proxy::with(origin.address, "observe", |cfg| {
        hone_shared::data_dir::DataDir::create(&data).unwrap();
        crate::harness::write_policies(&data, "observe");
        cfg.data = data.clone();
        cfg.limits.spool_queue_bytes_max = 1 << 20;
    })
    .await;
    traffic(&proxy, 0, 10, 100).await;
    proxy.settled(10).await;
    // Something else fills the disk.
    let ballast = mount.0.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[0u8; 4096]).is_ok() {}
    let mut sent = 10;
    while sent < 1_010 {
        let statuses = traffic(&proxy, sent, 100, 4_000).await;
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        sent += 100;
    }
    assert!(dropped_so_far(&proxy).await > 0, "4 MB do not fit into 1 MiB of memory");
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    health(&proxy, false).await;
    let counters = balanced(&proxy, sent as u64).await;
    assert!(number(&counters["stored"]) > 100, "what fitted into memory was kept: {counters}");
    traffic(&proxy, sent, 10, 100).await;
    balanced(&proxy, sent as u64 + 10).await;
}

/// A disk that fails: the next segments are links to a file whose every write is answered with EIO
/// by the kernel, for nothing is mapped at the address 0 of this process.
struct Failing(Vec<std::path::PathBuf>);

impl Failing {
    fn new(places: &[std::path::PathBuf]) -> Self {
        let mut links = Vec::new();
        for place in places {
            let own = std::fs::read_dir(place).unwrap().next().unwrap().unwrap().path();
            for number in 1..2_000 {
                let link = own.join(format!("{number:06}.seg"));
                std::os::unix::fs::symlink("/proc/self/mem", &link).unwrap();
                links.push(link);
            }
            // The open segment is missed, and the next one begun.
            let _ = std::fs::remove_file(own.join("000000.seg"));
        }
        Self(links)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.0.iter().for_each(|link| drop(std::fs::remove_file(link)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_answers_eio_stops_no_request_and_the_books_stay_exact() {
    let origin = Origin::start().await;
    for reserve_too in [false, true] {
        let proxy = Proxy::with(origin.address, "observe", |cfg| {
            cfg.limits.spool_queue_bytes_max = 1 << 20;
            // Long answers find no room for their parts, either.
            cfg.limits.capture_part_bytes = 150;
        })
        .await;
        traffic(&proxy, 0, 10, 500).await;
        proxy.settled(10).await;
        let mut places = vec![proxy.data.spool_dir()];
        places.extend(reserve_too.then(|| proxy.data.reserve_dir()));
        let failing = Failing::new(&places);
        let mut sent = 10;
        while sent < 510 {
            assert!(traffic(&proxy, sent, 50, 8_000).await.iter().all(|status| *status == 200));
            sent += 50;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if !reserve_too {
            eventually("the reserve is used", || bytes_under(&proxy.data.reserve_dir()) > 0).await;
        } else {
            health(&proxy, true).await;
            assert!(dropped_so_far(&proxy).await > 0, "4 MB do not fit into 1 MiB of memory");
        }
        let mut client = crate::client::Client::connect(proxy.address).await;
        let request = chat("a long answer", true);
        client.send(&post("/v1/burst/chat/completions?n=200", "", &request)).await;
        assert_eq!(client.response().await.text(), crate::origin::stream(200));
        drop(failing);
        health(&proxy, false).await;
        let counters = balanced(&proxy, sent as u64 + 1).await;
        assert_eq!(dropped(&counters) > 0, reserve_too, "{counters}");
        traffic(&proxy, sent, 10, 100).await;
        balanced(&proxy, sent as u64 + 11).await;
    }
}
