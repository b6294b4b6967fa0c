//! A server that says what a script says, byte by byte: what a client makes of answers that fail, are cut, stall or never end.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

#[path = "scripted/server.rs"]
mod server;

use std::time::Duration;

use basalt_kubo::{Auth, Cid, Class, Client, End, Options, PinAdd, PinKind, PinOptions, PinStep, Step, Unpinned};
use server::{Server, chunk};

const CID: &str = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTrailer: X-Stream-Error\r\nTransfer-Encoding: chunked\r\n\r\n";

fn cid() -> Cid {
    CID.parse().unwrap()
}

fn impatient() -> Options {
    Options { stall: Duration::from_millis(300), quiet: Duration::from_millis(900), ..Options::default() }
}

/// Until a test is hopeless; nothing waits so long for what it wants.
async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it never ended")
}

/// All steps of a pin.
async fn pinning(pin: &mut PinAdd) -> (Vec<(u64, u64)>, End) {
    let mut ticks = Vec::new();
    loop {
        match pin.next().await {
            PinStep::Progress { blocks, bytes } => ticks.push((blocks, bytes)),
            PinStep::End(end) => return (ticks, end),
        }
    }
}

/// All items of `pin/ls` and how it ended.
async fn listing(client: &Client) -> (usize, End) {
    let mut pins = match client.pin_ls(PinKind::Recursive, false).await {
        Ok(pins) => pins,
        Err(err) => panic!("no stream at all: {err}"),
    };
    let mut count = 0;
    loop {
        match pins.next().await {
            Step::Item(_) => count += 1,
            Step::End(end) => {
                // The end stays the end.
                assert_eq!(pins.next().await, Step::End(end.clone()));
                return (count, end);
            }
        }
    }
}

fn entry() -> String {
    format!("{{\"Cid\":\"{CID}\",\"Type\":\"recursive\",\"Name\":\"\"}}\n")
}

fn pinned() -> String {
    chunk(&format!("{{\"Pins\":[\"{CID}\"]}}\n"))
}

fn truncated(end: End) -> basalt_kubo::Error {
    match end {
        End::Truncated(err) => err,
        end => panic!("it ended as {end:?}"),
    }
}

#[tokio::test]
async fn a_whole_stream_is_complete() {
    let server = Server::saying(format!("{STREAM}{}{}0\r\n\r\n", chunk(&entry()), chunk(&entry().repeat(3))));
    assert_eq!(within(listing(&server.client(impatient()))).await, (4, End::Complete));
    let request = server.request();
    assert!(
        request.starts_with("POST /api/v0/pin/ls?stream=true&type=recursive&names=false HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(!request.to_lowercase().contains("authorization"), "{request}");
}

#[tokio::test]
async fn an_empty_stream_is_complete() {
    let server = Server::saying(format!("{STREAM}0\r\n\r\n"));
    assert_eq!(within(listing(&server.client(impatient()))).await, (0, End::Complete));
}

#[tokio::test]
async fn lines_may_be_cut_anywhere_by_chunks() {
    let text = entry().repeat(5);
    for size in [1, 2, 7, 64] {
        let chunks: String = text.as_bytes().chunks(size).map(|piece| chunk(str::from_utf8(piece).unwrap())).collect();
        let server = Server::saying(format!("{STREAM}{chunks}0\r\n\r\n"));
        assert_eq!(within(listing(&server.client(impatient()))).await, (5, End::Complete), "chunks of {size} bytes");
    }
}

#[tokio::test]
async fn an_error_in_the_trailer_is_a_failure_after_any_number_of_lines() {
    for lines in [0, 1, 100] {
        let server = Server::saying(format!(
            "{STREAM}{}0\r\nX-Stream-Error: datastore is closed\r\n\r\n",
            chunk(&entry()).repeat(lines)
        ));
        let (count, end) = within(listing(&server.client(impatient()))).await;
        assert_eq!(count, lines);
        let End::Failed(err) = end else { panic!("{lines} lines: it ended as {end:?}") };
        assert_eq!((err.class(), err.message()), (Class::Failed, "datastore is closed"));
        assert!(err.to_string().starts_with("pin/ls recursive: "), "{err}");
    }
}

#[tokio::test]
async fn an_error_that_comes_as_a_line_is_a_failure() {
    let server = Server::saying(format!(
        "{STREAM}{}{}0\r\n\r\n",
        chunk(&entry()),
        chunk("{\"Message\":\"broken\",\"Code\":0,\"Type\":\"error\"}\n")
    ));
    let (count, end) = within(listing(&server.client(impatient()))).await;
    assert!(count == 1 && matches!(&end, End::Failed(err) if err.message() == "broken"), "{end:?}");
}

#[tokio::test]
async fn a_connection_cut_after_any_byte_is_never_complete() {
    let whole = format!("{STREAM}{}{}0\r\n\r\n", chunk(&entry()), chunk(&entry()));
    for length in STREAM.len()..whole.len() {
        let server = Server::saying(&whole[..length]);
        let (count, end) = within(listing(&server.client(impatient()))).await;
        let err = truncated(end);
        assert_eq!(err.class(), Class::Truncated, "cut after {length} of {}: {err}", whole.len());
        assert!(count <= 2);
    }
}

#[tokio::test]
async fn an_answer_cut_in_its_head_is_an_error() {
    for length in [0, 1, 12, STREAM.len() - 1] {
        let server = Server::saying(&STREAM[..length]);
        let err = within(server.client(impatient()).pin_ls(PinKind::Recursive, false)).await.map(|_| ()).unwrap_err();
        assert!(matches!(err.class(), Class::Truncated | Class::Protocol), "cut after {length}: {err:?}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_in_half_a_line_is_truncated_though_http_ended_well() {
    let server = Server::saying(format!("{STREAM}{}{}0\r\n\r\n", chunk(&entry()), chunk("{\"Cid\":\"baf")));
    let (count, end) = within(listing(&server.client(impatient()))).await;
    assert_eq!((count, truncated(end).class()), (1, Class::Truncated));
}

#[tokio::test]
async fn an_answer_whose_end_is_the_connections_end_is_refused() {
    let server = Server::saying(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}", entry()));
    let err = within(server.client(impatient()).pin_ls(PinKind::Recursive, false)).await.map(|_| ()).unwrap_err();
    assert_eq!(err.class(), Class::Protocol);
    assert!(err.to_string().contains("can't be told from a cut"), "{err}");
}

#[tokio::test]
async fn silence_ends_a_stream_as_stalled() {
    let server = Server::saying_then_silent(format!("{STREAM}{}", chunk(&entry())));
    let (count, end) = within(listing(&server.client(impatient()))).await;
    assert_eq!((count, truncated(end).class()), (1, Class::Stalled));
}

#[tokio::test]
async fn silence_before_the_head_is_stalled_too() {
    let server = Server::saying_then_silent("");
    let err = within(server.client(impatient()).version()).await.unwrap_err();
    assert_eq!(err.class(), Class::Stalled);
    assert!(err.class().passes());
}

#[tokio::test]
async fn a_pin_outlives_its_stall_timeout_while_kubo_ticks() {
    let mut script: Vec<(Duration, String)> = vec![(Duration::ZERO, STREAM.to_owned())];
    for tick in 1..=10 {
        let line = format!("{{\"Progress\":{tick},\"Bytes\":{}}}\n", tick * 256);
        script.push((Duration::from_millis(60), chunk(&line)));
    }
    script.push((Duration::ZERO, format!("{}0\r\n\r\n", pinned())));
    let server = Server::playing(script);
    let mut pin = server.client(impatient()).pin_add(&cid(), &PinOptions::default()).await.unwrap();
    let (ticks, end) = within(pinning(&mut pin)).await;
    assert_eq!((ticks.last(), end), (Some(&(10, 2560)), End::Complete));
    let request = server.request();
    assert!(request.contains(&format!("/api/v0/pin/add?arg={CID}&recursive=true&progress=true ")), "{request}");
}

#[tokio::test]
async fn a_pin_that_ticks_without_a_further_block_is_given_up() {
    let tick = chunk("{\"Progress\":7}\n");
    let mut script: Vec<(Duration, String)> = vec![(Duration::ZERO, STREAM.to_owned())];
    script.extend(std::iter::repeat_n((Duration::from_millis(50), tick), 500));
    let server = Server::playing(script);
    let options = PinOptions { progress_stall: Some(Duration::from_millis(400)), ..PinOptions::default() };
    let mut pin = server.client(impatient()).pin_add(&cid(), &options).await.unwrap();
    let (ticks, end) = within(pinning(&mut pin)).await;
    let err = truncated(end);
    assert_eq!(err.class(), Class::Stalled);
    assert!(err.message().contains("7 blocks"), "{err}");
    assert!(ticks.len() < 100, "{}", ticks.len());
    server.is_hung_up_on().await;
}

#[tokio::test]
async fn a_pin_that_fails_after_its_ticks_is_not_pinned() {
    let failed = "0\r\nX-Stream-Error: block was not found locally\r\n\r\n";
    // Even a line that names the pin does not make up for a failure.
    for lines in [chunk("{\"Progress\":3}\n"), String::new(), pinned()] {
        let server = Server::saying(format!("{STREAM}{lines}{failed}"));
        let mut pin = server.client(impatient()).pin_add(&cid(), &PinOptions::default()).await.unwrap();
        let (_, end) = within(pinning(&mut pin)).await;
        assert!(
            matches!(&end, End::Failed(err) if err.message() == "block was not found locally"),
            "{lines:?}: {end:?}"
        );
    }
}

#[tokio::test]
async fn a_pin_whose_answer_never_names_it_is_not_pinned() {
    for lines in ["", "{\"Progress\":3}\n", "{\"Pins\":[]}\n", "{\"Pins\":null,\"Progress\":9}\n"] {
        let lines = if lines.is_empty() { String::new() } else { chunk(lines) };
        let server = Server::saying(format!("{STREAM}{lines}0\r\n\r\n"));
        let mut pin = server.client(impatient()).pin_add(&cid(), &PinOptions::default()).await.unwrap();
        let (_, end) = within(pinning(&mut pin)).await;
        assert!(truncated(end).message().contains("without naming the pin"), "{lines:?}");
    }
}

#[tokio::test]
async fn a_line_without_end_costs_bounded_memory() {
    let endless = format!("{STREAM}{}", chunk(&"x".repeat(8192)).repeat(64));
    let server = Server::saying_then_silent(endless);
    let options = Options { line_bytes_max: 64 << 10, ..impatient() };
    let (count, end) = within(listing(&server.client(options))).await;
    let err = truncated(end);
    assert_eq!((count, err.class()), (0, Class::Protocol));
    assert!(err.message().contains("longer than 65536 bytes"), "{err}");
}

#[tokio::test]
async fn an_answer_without_end_costs_bounded_memory() {
    let server = Server::saying_then_silent(format!("{STREAM}{}", chunk(&" ".repeat(8192)).repeat(64)));
    let options = Options { answer_bytes_max: 64 << 10, ..impatient() };
    let err = within(server.client(options).version()).await.unwrap_err();
    assert!(err.class() == Class::Protocol && err.message().contains("longer than 65536 bytes"), "{err}");
}

#[tokio::test]
async fn what_is_no_json_or_another_calls_json_is_no_answer() {
    for line in [
        "<html>\n",
        "{\"Progress\":1\n",
        "[]\n",
        "{\"Cid\":\"nonsense\",\"Type\":\"recursive\"}\n",
        "{\"Cid\":7}\n",
        "\u{0}\n",
    ] {
        let server = Server::saying(format!("{STREAM}{}{}0\r\n\r\n", chunk(&entry()), chunk(line)));
        let (count, end) = within(listing(&server.client(impatient()))).await;
        assert_eq!((count, truncated(end).class()), (1, Class::Protocol), "{line:?}");
    }
}

#[tokio::test]
async fn an_error_before_the_first_byte_says_what_kubo_says() {
    let body = "{\"Message\":\"pin: not that\\nway\",\"Code\":0,\"Type\":\"error\"}";
    let server =
        Server::saying(format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let err = within(server.client(impatient()).pin_add(&cid(), &PinOptions::default())).await.map(|_| ()).unwrap_err();
    assert_eq!((err.class(), err.message()), (Class::Failed, "pin: not that way"));
}

#[tokio::test]
async fn answers_that_are_no_kubos_say_so() {
    let say = |status: &str, body: &str| {
        Server::saying(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    for (status, body, class) in [
        ("404 Not Found", "404 page not found", Class::Protocol),
        ("405 Method Not Allowed", "", Class::Protocol),
        ("301 Moved Permanently", "", Class::Protocol),
        ("204 No Content", "", Class::Protocol),
        ("500 Internal Server Error", "panic", Class::Protocol),
        ("502 Bad Gateway", "", Class::Unreachable),
        ("401 Unauthorized", "", Class::Denied),
        ("403 Forbidden", "Kubo RPC Access Denied", Class::Denied),
    ] {
        let err = within(say(status, body).client(impatient()).id()).await.unwrap_err();
        assert_eq!(err.class(), class, "{err}");
    }
    let err = within(Server::saying("SSH-2.0-OpenSSH_9.2\r\n").client(impatient()).id()).await.unwrap_err();
    assert_eq!(err.class(), Class::Protocol, "{err}");
}

#[tokio::test]
async fn unpinning_what_is_not_pinned_is_done() {
    let say = |message: &str| {
        let body = format!("{{\"Message\":\"{message}\",\"Code\":0,\"Type\":\"error\"}}");
        Server::saying(format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    let client = say("not pinned or pinned indirectly").client(impatient());
    assert_eq!(within(client.pin_rm(&cid(), true)).await, Ok(Unpinned::WasNot));
    // Only just these words: another failure that has them in it is one.
    for other in ["'baf' is pinned recursively", "cannot tell: not pinned or pinned indirectly"] {
        let err = within(say(other).client(impatient()).pin_rm(&cid(), false)).await.unwrap_err();
        assert_eq!(err.message(), other);
    }
    let whole = format!("{STREAM}{}0\r\n\r\n", pinned());
    assert_eq!(within(Server::saying(&whole).client(impatient()).pin_rm(&cid(), true)).await, Ok(Unpinned::Removed));
    for length in STREAM.len()..whole.len() {
        let err = within(Server::saying(&whole[..length]).client(impatient()).pin_rm(&cid(), true)).await.unwrap_err();
        assert_eq!(err.class(), Class::Truncated, "cut after {length}: {err}");
    }
}

#[tokio::test]
async fn unpinning_may_be_silent_for_longer_than_a_stream() {
    let server = Server::playing(vec![(Duration::from_millis(500), format!("{STREAM}{}0\r\n\r\n", pinned()))]);
    assert_eq!(within(server.client(impatient()).pin_rm(&cid(), true)).await, Ok(Unpinned::Removed));
    let err = within(Server::saying_then_silent("").client(impatient()).pin_rm(&cid(), true)).await.unwrap_err();
    assert_eq!(err.class(), Class::Stalled);
}

#[tokio::test]
async fn a_secret_goes_into_the_header_and_nowhere_else() {
    let denied = "HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\ndenied";
    for (secret, header) in [("bearer:hunter2", "Bearer hunter2"), ("basic:me:hunter2", "Basic bWU6aHVudGVyMg==")] {
        let server = Server::saying(denied);
        let client = Client::new(server.endpoint(), &secret.parse().unwrap(), impatient()).unwrap();
        let err = within(client.id()).await.unwrap_err();
        assert!(server.request().contains(&format!("authorization: {header}\r\n")), "{}", server.request());
        assert!(!format!("{err} {err:?} {client:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn an_argument_can_not_leave_its_place() {
    let server = Server::saying(format!("{STREAM}{}0\r\n\r\n", pinned()));
    let name = Some("a&recursive=false#?\r\nX: y é".to_owned());
    let options = PinOptions { name, ..PinOptions::default() };
    within(async { server.client(impatient()).pin_add(&cid(), &options).await.unwrap().finish().await }).await.unwrap();
    let request = server.request();
    let target = request.split(' ').nth(1).unwrap();
    assert!(target.ends_with("&name=a%26recursive%3Dfalse%23%3F%0D%0AX%3A+y+%C3%A9"), "{target}");

    let long = PinOptions { name: Some("é".repeat(128)), ..PinOptions::default() };
    let err = server.client(impatient()).pin_add(&cid(), &long).await.map(|_| ()).unwrap_err();
    assert_eq!(err.class(), Class::Argument);
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_says_where() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(endpoint.parse().unwrap(), &Auth::None, impatient()).unwrap();
    let err = within(client.id()).await.unwrap_err();
    assert_eq!(err.class(), Class::Unreachable);
    assert!(err.to_string().contains(&endpoint), "{err}");

    let client = Client::new("unix:/nowhere/api.sock".parse().unwrap(), &Auth::None, impatient()).unwrap();
    let err = within(client.id()).await.unwrap_err();
    assert!(err.class() == Class::Unreachable && err.to_string().contains("unix:/nowhere/api.sock"), "{err}");
}

#[tokio::test]
async fn a_connection_serves_the_next_call_unless_its_stream_was_dropped() {
    let answer = format!("{STREAM}{}0\r\n\r\n", chunk("{\"Version\":\"0.43.0\",\"Commit\":\"\",\"Repo\":\"18\"}\n"));
    let server = Server::answering_each(answer);
    let client = server.client(impatient());
    for _ in 0..5 {
        assert_eq!(within(client.version()).await.unwrap().version, "0.43.0");
    }
    assert_eq!(server.connections(), 1);
    drop(within(client.pin_ls(PinKind::Recursive, false)).await.unwrap());
    within(client.version()).await.unwrap();
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_costs_no_call() {
    let answer = format!("{STREAM}{}0\r\n\r\n", chunk("{\"Version\":\"0.43.0\"}\n"));
    let server = Server::saying(answer);
    let client = server.client(impatient());
    for _ in 0..20 {
        within(client.version()).await.unwrap();
    }
}

#[tokio::test]
async fn calls_beyond_the_bound_wait_their_turn() {
    let server = Server::saying_then_silent(STREAM);
    let client = server.client(Options { calls_max: 1, stall: Duration::from_secs(60), ..Options::default() });
    let held = within(client.pin_ls(PinKind::Recursive, false)).await.unwrap();
    let again = client.clone();
    let second = tokio::spawn(async move { again.pin_ls(PinKind::Recursive, false).await.map(drop) });
    // It has every chance to run by then.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.connections(), 1, "a second call was made while the first held the only place");
    drop(held);
    within(second).await.unwrap().unwrap();
    assert_eq!(server.connections(), 2);
}
