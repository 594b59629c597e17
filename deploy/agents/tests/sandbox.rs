//! The sandbox: what programs can do in it, and what they cannot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::time::{Duration, Instant};

use hone_agents::sandbox::{Limits, Sandbox};

async fn sandbox() -> Sandbox {
    Sandbox::new(Limits::default()).await.expect("bubblewrap is installed: use deploy/test.sh")
}

#[tokio::test]
async fn a_command_shows_its_output_and_exit_code() {
    let sandbox = sandbox().await;
    sandbox.write("a.txt", "hello\n").unwrap();
    assert_eq!(sandbox.shell("cat a.txt").await.unwrap().shown(), "hello\nexit code: 0");
    let missing = sandbox.shell("cat b.txt").await.unwrap();
    assert_eq!(missing.exit, Some(1));
    assert!(missing.output.contains("No such file"), "{missing:?}");
    let broken = sandbox.shell("if (").await.unwrap();
    assert!(broken.exit.is_some_and(|code| code != 0), "{broken:?}");
    assert_eq!(sandbox.shell("mkdir box && touch c").await.unwrap().exit, Some(0));
    assert_eq!(sandbox.names(), ["a.txt", "box/", "c"]);
    assert!(sandbox.is_dir("box") && !sandbox.is_dir("c"));
}

#[tokio::test]
async fn nothing_outside_the_scratch_directory_can_be_read_or_written() {
    let sandbox = sandbox().await;
    let home = std::env::var("HOME").unwrap();
    for command in [
        "cat /etc/passwd",
        "cat /etc/shadow",
        &format!("ls {home}"),
        "ls /work/../root",
        "touch /usr/bin/x",
        "touch /escaped",
        "echo x > ../escaped",
        "ls /proc",
        "mount -t tmpfs none /work",
    ] {
        let ran = sandbox.shell(command).await.unwrap();
        assert_ne!(ran.exit, Some(0), "{command}: {ran:?}");
    }
    // Its own first process at most: the kernel ignores that and says nothing.
    sandbox.shell("kill -9 1; kill -9 -1").await.unwrap();
    let beside = sandbox.path().parent().unwrap().join("escaped");
    assert!(!beside.exists());
    let who = sandbox.shell("id -u; pwd").await.unwrap();
    assert_eq!(who.output, "65534\n/work\n");
}

#[tokio::test]
async fn the_network_and_our_variables_are_not_there() {
    let sandbox = sandbox().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let python =
        format!("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 2)'");
    let ran = sandbox.shell(&python).await.unwrap();
    assert!(ran.exit != Some(0) && ran.output.contains("refused"), "{ran:?}");
    let variables = sandbox.shell("env").await.unwrap().output;
    let names: Vec<&str> = variables.lines().filter_map(|line| line.split('=').next()).collect();
    let known = ["PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
}

#[tokio::test]
async fn what_takes_too_long_is_stopped_with_everything_it_started() {
    let limits = Limits { time: Duration::from_millis(700), ..Limits::default() };
    let sandbox = Sandbox::new(limits).await.unwrap();
    let started = Instant::now();
    // A name that is found nowhere else in the table of processes.
    let command = "(setsid sleep 86399 &) ; (trap '' TERM INT HUP; sleep 86399)";
    let ran = sandbox.shell(command).await.unwrap();
    assert_eq!((ran.exit, ran.stopped), (None, Some("timed out")));
    assert_eq!(ran.shown(), "error: timed out");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let ended = sandbox.shell("(setsid sleep 86398 >/dev/null 2>&1 &) ; true").await.unwrap();
    assert_eq!(ended.exit, Some(0), "a command ends although its child would go on");
    let left = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let line = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
        let sleeps = |line: &Vec<u8>| {
            let line = String::from_utf8_lossy(line);
            line.starts_with("sleep\0") && (line.contains("86399") || line.contains("86398"))
        };
        processes.filter_map(line).filter(sleeps).count()
    };
    while left() > 0 && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(left(), 0, "nothing outlives the run");
}

#[tokio::test]
async fn output_memory_files_and_processes_are_bounded() {
    let sandbox = sandbox().await;
    let endless = sandbox.shell("yes").await.unwrap();
    assert_eq!((endless.exit, endless.stopped), (None, Some("too much output")));
    assert_eq!(endless.output.len(), Limits::default().output_bytes_max);
    let large = sandbox.shell("head -c 5000000 /dev/zero > large").await.unwrap();
    assert_ne!(large.exit, Some(0), "{large:?}");
    let memory = sandbox.shell("python3 -c 'bytearray(1 << 30)'").await.unwrap();
    assert!(memory.output.contains("MemoryError"), "{memory:?}");
    let forks = "i=0; while [ $i -lt 100 ]; do sleep 3 & i=$((i+1)); done";
    let forks = sandbox.shell(forks).await.unwrap();
    assert!(forks.output.contains("fork") && forks.exit != Some(0), "{forks:?}");
    let many = "i=0; while [ $i -lt 300 ]; do : > f$i; i=$((i+1)); done";
    assert_eq!(sandbox.shell(many).await.unwrap().exit, Some(0));
    let after = sandbox.shell("true").await.unwrap();
    assert_eq!((after.exit, after.stopped), (None, Some("too many files, nothing was run")));
}

#[tokio::test]
async fn the_host_follows_no_link_and_no_path_out_of_the_scratch_directory() {
    let sandbox = sandbox().await;
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), "secret").unwrap();
    let link = format!("ln -s {} link; ln -s / dir", outside.path().display());
    assert_eq!(sandbox.shell(&link).await.unwrap().exit, Some(0));
    assert_eq!(sandbox.read("link"), None);
    assert!(!sandbox.is_dir("dir"));
    for name in ["link", "../escaped", "/tmp/escaped", "dir/x", "..", ""] {
        assert!(sandbox.write(name, "x").is_err(), "{name}");
        assert_eq!(sandbox.read(name), None, "{name}");
    }
    assert_eq!(std::fs::read_to_string(outside.path()).unwrap(), "secret");
}

#[tokio::test]
async fn the_scratch_directory_is_gone_afterwards() {
    let sandbox = sandbox().await;
    let path = sandbox.path().to_owned();
    assert_eq!(sandbox.shell("mkdir -p a/b && touch a/b/c").await.unwrap().exit, Some(0));
    sandbox.destroy().unwrap();
    assert!(!path.exists());
}
