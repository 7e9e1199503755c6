//! The load and the service, with nothing between them.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use super::{Flow, FrameLoad, service};

fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || service::listened(&listener));
    address
}

#[test]
fn every_call_is_answered_with_its_body() {
    for body in [0, 64, 16 << 10, (64 << 10) + 1, 1 << 20] {
        let load = FrameLoad { connections: 3, calls: Some(60), ..FrameLoad::new(echo(), Flow { body, depth: 7 }) };
        let running = load.start().unwrap();
        let [report] = &running.end().unwrap()[..] else { panic!("one flow") };
        assert_eq!((report.answered(), report.errors), (60, 0), "{body} B: {:?}", report.last_error);
    }
}

#[test]
fn small_calls_go_beside_large_ones() {
    let flows = vec![Flow { body: 64, depth: 1 }, Flow { body: 1 << 20, depth: 2 }];
    let load = FrameLoad { flows, ..FrameLoad::new(echo(), Flow { body: 0, depth: 1 }) };
    let running = load.start().unwrap();
    thread::sleep(Duration::from_millis(200));
    let (reports, bytes) = running.stop().unwrap();
    assert!(bytes > 2 << 20);
    let [small, large] = &reports[..] else { panic!("two flows") };
    assert_eq!((small.errors, large.errors), (0, 0), "{:?} {:?}", small.last_error, large.last_error);
    assert!(small.answered() > large.answered() && large.answered() > 0);
}

#[test]
fn who_ends_the_connection_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    thread::spawn(move || drop(listener.accept()));
    assert!(FrameLoad::new(to, Flow { body: 64, depth: 1 }).start().is_err());
}
