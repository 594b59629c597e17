//! Choosing among engines, without any network.

use super::*;

fn engines(names: &[&str]) -> Engines {
    let upstreams: Vec<Upstream> = names.iter().map(|n| Upstream::parse(n).unwrap()).collect();
    let all = Engines::new(&upstreams, &EngineTls::default(), &Limits::default()).unwrap();
    for engine in all.all() {
        let host = engine.upstream.host.parse().unwrap();
        engine.resolved(&[SocketAddr::new(host, engine.upstream.port)]);
    }
    all
}

fn put_out(all: &Engines, engine: usize) {
    all.all()[engine].targets().iter().for_each(|target| target.probed(false, 1));
}

const THREE: [&str; 3] = ["http://10.0.0.1:1", "http://10.0.0.2:1", "http://10.0.0.3:1"];

#[test]
fn a_key_keeps_its_engine_and_spills_to_one_other_while_that_is_out() {
    let all = engines(&THREE);
    for key in (0..200).map(|n| affinity::seed(&n.to_string())) {
        let home = all.choose(key, &[]).unwrap().engine;
        assert_eq!(all.choose(key, &[]).unwrap().engine, home);
        put_out(&all, home);
        let other = all.choose(key, &[]).unwrap().engine;
        assert_ne!(other, home);
        assert_eq!(all.choose(key, &[]).unwrap().engine, other, "caches warm up there too");
        all.all()[home].targets()[0].probed(true, 1);
        assert_eq!(all.choose(key, &[]).unwrap().engine, home, "and back");
    }
    assert_eq!(all.spilled(), 400);
}

#[test]
fn a_request_never_tries_an_address_twice_and_ends_when_none_is_left() {
    let all = engines(&THREE);
    let mut tried = Vec::new();
    while let Some(choice) = all.choose(7, &tried) {
        assert!(!tried.contains(&choice.target.address));
        tried.push(choice.target.address);
    }
    assert_eq!(tried.len(), 3);
}

#[test]
fn when_all_are_thought_to_be_down_the_own_engine_is_tried() {
    let all = engines(&THREE);
    let home = all.choose(7, &[]).unwrap().engine;
    (0..3).for_each(|engine| put_out(&all, engine));
    assert_eq!(all.choose(7, &[]).unwrap().engine, home);
}

#[test]
fn addresses_of_one_engine_share_its_keys_before_another_engine_does() {
    let all = engines(&THREE);
    let more: Vec<SocketAddr> = (1..=4).map(|n| ([10, 1, 0, n], 1).into()).collect();
    all.all()[0].resolved(&more);
    let keys = (0..2000).map(|n| affinity::seed(&n.to_string()));
    let here: Vec<Choice> =
        keys.filter_map(|key| all.choose(key, &[])).filter(|choice| choice.engine == 0).collect();
    assert!((550..800).contains(&here.len()), "a third, whatever its addresses: {}", here.len());
    let key = (0..).find(|key| all.choose(*key, &[]).unwrap().engine == 0).unwrap();
    let first = all.choose(key, &[]).unwrap();
    let second = all.choose(key, &[first.target.address]).unwrap();
    assert_eq!(second.engine, 0, "the next address of the same engine");
    assert_ne!(second.target.address, first.target.address);
}

#[test]
fn a_peer_with_tls_always_has_a_name_to_verify() {
    for url in ["https://engine.example", "https://10.0.0.1:8443", "https://[::1]:9"] {
        let upstream = Upstream::parse(url).unwrap();
        let all = Engines::new(&[upstream], &EngineTls::default(), &Limits::default()).unwrap();
        all.all()[0].resolved(&["10.0.0.1:1".parse().unwrap()]);
        let choice = all.choose(0, &[]).unwrap();
        let peer = all.peer(&choice, Wants { fresh: false, upgrade: false });
        assert!(!peer.sni.is_empty() && peer.options.verify_cert && peer.options.verify_hostname);
    }
}
