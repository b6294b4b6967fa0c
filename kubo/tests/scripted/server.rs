//! The scripted server: a thread that accepts, reads a request's head, and plays its script.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use basalt_kubo::{Auth, Client, Endpoint, Options};

/// What follows the last byte of a script.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// The connection closes.
    Close,
    /// Nothing, until the client hangs up.
    Silence,
    /// The next request.
    NextRequest,
}

/// A server on loopback. Each connection hears the same script.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    hung_up: Arc<AtomicUsize>,
}

/// `text` as one chunk of HTTP's chunked coding.
pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

impl Server {
    /// Says it, then closes the connection.
    pub fn saying(text: impl AsRef<str>) -> Server {
        Server::start(vec![(Duration::ZERO, text.as_ref().to_owned())], Then::Close)
    }

    /// Says it, then nothing more.
    pub fn saying_then_silent(text: impl AsRef<str>) -> Server {
        Server::start(vec![(Duration::ZERO, text.as_ref().to_owned())], Then::Silence)
    }

    /// Says each text after its pause, then closes the connection.
    pub fn playing(script: Vec<(Duration, String)>) -> Server {
        Server::start(script, Then::Close)
    }

    /// Says it to each request, on one connection or many.
    pub fn answering_each(text: impl AsRef<str>) -> Server {
        Server::start(vec![(Duration::ZERO, text.as_ref().to_owned())], Then::NextRequest)
    }

    fn start(script: Vec<(Duration, String)>, then: Then) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (connections, hung_up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let server = Server {
            address,
            requests: Arc::clone(&requests),
            connections: Arc::clone(&connections),
            hung_up: Arc::clone(&hung_up),
        };
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, requests, hung_up) = (Arc::clone(&script), Arc::clone(&requests), Arc::clone(&hung_up));
                thread::spawn(move || serve(stream, &script, then, &requests, &hung_up));
            }
        });
        server
    }

    pub fn endpoint(&self) -> Endpoint {
        format!("http://{}", self.address).parse().unwrap()
    }

    pub fn client(&self, options: Options) -> Client {
        Client::new(self.endpoint(), &Auth::None, options).unwrap()
    }

    /// Head of the last request.
    pub fn request(&self) -> String {
        self.requests.lock().unwrap().last().cloned().unwrap_or_default()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until a client has closed its connection.
    pub async fn is_hung_up_on(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.hung_up.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "the client kept its connection");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn serve(
    mut stream: TcpStream,
    script: &[(Duration, String)],
    then: Then,
    requests: &Mutex<Vec<String>>,
    hung_up: &AtomicUsize,
) {
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        requests.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
        for (pause, text) in script {
            thread::sleep(*pause);
            if stream.write_all(text.as_bytes()).is_err() {
                hung_up.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
        match then {
            Then::Close => return,
            Then::Silence => {
                // Until the client goes.
                while matches!(stream.read(&mut byte), Ok(1)) {}
                hung_up.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Then::NextRequest => {}
        }
    }
}
