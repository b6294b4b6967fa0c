//! Opening a node that another process may have open: one that hands over (an autostarted agent) is asked to, and waited for.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use basalt_blockstore::{ErrorKind, Result};
use basalt_proto::v1::HandOverRequest;

use crate::{Host, Node, client, config::Config};

/// Time between two looks at whether the owner has let go.
const POLL: Duration = Duration::from_millis(10);

impl Node {
    /// [`Node::open`], after asking an owner that hands over to let go, at most until `deadline` has passed. `by` says who asks, for the
    /// owner's log. An owner that does not hand over: [`ErrorKind::Locked`], which says who it is and what to do.
    ///
    /// Blocks; to be called from a thread that is in no async runtime.
    pub fn open_taking_over(
        path: &Path,
        config: Config,
        host: Host,
        by: &str,
        deadline: Duration,
    ) -> Result<Arc<Node>> {
        let begin = Instant::now();
        let mut asked = false;
        loop {
            let locked = match Node::open(path, config.clone(), host) {
                Err(err) if err.kind() == ErrorKind::Locked => err,
                opened => return opened,
            };
            if begin.elapsed() >= deadline {
                return Err(locked);
            }
            if !asked {
                asked = match client::block_on(ask(path, &config, by)) {
                    Ok(()) => true,
                    // It does not serve: it is opening, and will, or closing, and lets go soon.
                    Err(err) if err.kind() == ErrorKind::Unavailable => false,
                    Err(err) => return Err(err),
                };
            }
            std::thread::sleep(POLL);
        }
    }
}

async fn ask(path: &Path, config: &Config, by: &str) -> Result<()> {
    let mut admin = client::admin(path, &config.sockets).await?;
    let request = HandOverRequest { force: false, by: by.to_owned() };
    admin.hand_over(request).await.map_err(|status| client::error(&status))?;
    Ok(())
}
