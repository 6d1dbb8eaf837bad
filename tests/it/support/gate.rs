//! A gate in front of a server: shut, it drops whoever connects; open, it lets everything through. So one process can be cut off from a
//! server that others reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::wait::wait_for;

/// The gate; it ends with the runtime of its test.
pub struct Gate {
    /// The server's URL, through the gate.
    pub url: String,
    is_open: Arc<AtomicBool>,
    refused: Arc<AtomicU32>,
}

impl Gate {
    /// Listens on a free port in front of the server at `url` (`scheme://host:port`, maybe with a path).
    pub async fn shut(url: &str) -> Self {
        let server = url::Url::parse(url).expect("a legal URL");
        let address = format!("{}:{}", server.host_str().expect("a host"), server.port().expect("a port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (is_open, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let url = url.replace(&address, &format!("127.0.0.1:{port}"));
        let (may_pass, count) = (Arc::clone(&is_open), Arc::clone(&refused));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if !may_pass.load(Ordering::SeqCst) {
                    count.fetch_add(1, Ordering::SeqCst);
                } else if let Ok(mut server) = TcpStream::connect(&address).await {
                    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
                }
            }
        });
        Self { url, is_open, refused }
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }

    /// Waits until somebody who connects from now on was dropped.
    pub async fn refuses_a_call(&self) {
        let before = self.refused.load(Ordering::SeqCst);
        wait_for("somebody is refused", Duration::from_secs(20), async || self.refused.load(Ordering::SeqCst) > before)
            .await;
    }
}
