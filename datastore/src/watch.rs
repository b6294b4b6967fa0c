//! The thread that looks whether the disks answer (STORE 14). It never touches one itself.

use std::{sync::Arc, time::Duration};

use basalt_blockstore::{
    Error, Result,
    sync::{Condvar, Mutex, thread},
};

use crate::Stores;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Watch {
    stopped: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Watch {
    pub(crate) fn start(stores: Arc<Stores>) -> Result<Watch> {
        let stopped = Arc::new((Mutex::new(false), Condvar::default()));
        let of_thread = stopped.clone();
        let thread = thread::Builder::new()
            .name("basalt-watch".into())
            .spawn(move || {
                let (stopped, changed) = &*of_thread;
                let mut guard = stopped.lock();
                while !*guard {
                    guard = changed.wait_for(guard, EVERY);
                    drop(guard);
                    stores.watch();
                    guard = stopped.lock();
                }
            })
            .map_err(|err| Error::io("start the thread that watches the disks", err))?;
        Ok(Watch { stopped, thread: Mutex::new(Some(thread)) })
    }

    /// Returns when the thread has ended.
    pub(crate) fn stop(&self) {
        *self.stopped.0.lock() = true;
        self.stopped.1.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watches the disks has panicked");
        }
    }
}
