//! A load against small servers that answer as told.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::{Load, get};

/// Serves every connection with a function, each in its own thread.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(socket));
        }
    });
    address
}

/// Answers each request, which is `len` bytes long, with the answer.
fn answering(len: usize, answer: &'static [u8]) -> impl Fn(TcpStream) + Clone + Send {
    move |mut socket| {
        let mut request = vec![0; len];
        while socket.read_exact(&mut request).is_ok() && socket.write_all(answer).is_ok() {}
    }
}

#[test]
fn counts_what_was_answered() {
    let request = get("{}");
    let to = server(answering(request.len(), b"$8\r\n{\"ec\":0}\r\n"));
    let load = Load { connections: 3, depth: 4, ..Load::new(to, vec![request]) };
    let mut running = load.start().unwrap();
    let first = until(&mut running, |report| report.answered() > 100);
    let rest = running.stop().unwrap();
    assert_eq!((first.errors, rest.errors), (0, 0), "{:?} {:?}", first.last_error, rest.last_error);
    assert!(first.percentile_ns(50.0) > 0 && first.percentile_ns(50.0) <= first.percentile_ns(99.0));
    assert!(first.per_second() > 0.0);
}

#[test]
fn an_open_load_counts_from_when_a_request_was_due() {
    let request = get("{}");
    let len = request.len();
    // One caller, whose answers take four times as long as the time between two requests.
    let to = server(move |mut socket| {
        let mut request = vec![0; len];
        while socket.read_exact(&mut request).is_ok() && socket.write_all(b"+OK\r\n").is_ok() {
            thread::sleep(Duration::from_millis(4));
        }
    });
    let load = Load { rate: Some(1_000.0), ..Load::new(to, vec![request]) };
    assert!(Load { rate: None, ..load.clone() }.start_open().is_err());
    let mut running = load.start_open().unwrap();
    let report = until(&mut running, |report| report.answered() >= 50);
    assert_eq!(report.errors + running.stop().unwrap().errors, 0);
    assert!(report.percentile_ns(100.0) > 100_000_000, "the queue has grown to {} ns", report.percentile_ns(100.0));
}

#[test]
fn requests_are_sent_in_turn() {
    let to = server(|mut socket| {
        let mut request = vec![0; get("a").len()];
        for expected in ["a", "b", "c"].into_iter().cycle() {
            if socket.read_exact(&mut request).is_err() {
                return;
            }
            let answer: &[u8] = if request == get(expected) { b"+OK\r\n" } else { b"-ERR out of turn\r\n" };
            let _ = socket.write_all(answer);
        }
    });
    let load = Load { depth: 2, ..Load::new(to, vec![get("a"), get("b"), get("c")]) };
    let mut running = load.start().unwrap();
    let report = until(&mut running, |report| report.answered() > 30);
    assert_eq!((report.errors, report.last_error), (0, None));
}

#[test]
fn error_answers_are_counted_and_kept() {
    let request = get("{}");
    let to = server(answering(request.len(), b"$10\r\n{\"ec\":501}\r\n"));
    let mut running = Load::new(to, vec![request]).start().unwrap();
    let report = until(&mut running, |report| report.errors > 10);
    assert_eq!(report.errors, report.answered());
    assert_eq!(report.last_error.as_deref(), Some("{\"ec\":501}"));
}

#[test]
fn a_closed_connection_is_an_error_and_opened_again() {
    let request = get("{}");
    let len = request.len();
    let to = server(move |mut socket| {
        let mut request = vec![0; len];
        let _ = socket.read_exact(&mut request);
        let _ = socket.write_all(b"+OK\r\n");
        let _ = socket.read_exact(&mut request);
    });
    let mut running = Load::new(to, vec![request]).start().unwrap();
    let report = until(&mut running, |report| report.answered() >= 2);
    assert!(report.errors >= 1);
    assert!(report.last_error.is_some());
}

#[test]
fn a_rate_is_kept() {
    let request = get("{}");
    let to = server(answering(request.len(), b"+OK\r\n"));
    let load = Load { connections: 4, rate: Some(200.0), ..Load::new(to, vec![request]) };
    let report = until(&mut load.start().unwrap(), |report| report.elapsed >= Duration::from_secs(1));
    // A busy machine may make it slower, nothing makes it faster.
    assert!((10.0..=220.0).contains(&report.per_second()), "{}", report.per_second());
}

#[test]
fn no_server_is_an_error_at_the_start() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Load::new(nobody, vec![get("{}")]).start().unwrap_err();
    assert!(format!("{error:#}").contains(&nobody.to_string()), "{error:#}");
}

/// Adds reports up until they satisfy, within a deadline.
fn until(running: &mut super::Running, enough: impl Fn(&super::Report) -> bool) -> super::Report {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut all = running.take().unwrap();
    while !enough(&all) {
        assert!(Instant::now() < deadline, "not in time: {all:?}");
        thread::yield_now();
        all.absorb(&running.take().unwrap()).unwrap();
    }
    all
}
