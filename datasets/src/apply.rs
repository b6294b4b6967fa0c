//! Does what a plan says, step by step, and says so. Killed anywhere, or stopped by an error, it leaves a mark on the node's dataset
//! ([`APPLYING_PROPERTY`]) and a state that the next plan takes from there: nothing has to be undone, because no step takes anything away.

use std::{
    fmt,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use basalt_zfs::{Class, Dataset, Entity, Operation, PropertyName, Result, Source, Zfs};

use crate::{
    Layout,
    plan::{APPLYING_PROPERTY, Plan, Step},
};

/// What needs root on Linux. [`Own`] does it as the user who runs this; a privileged helper may do it instead.
pub trait Hands {
    /// Makes a dataset, unmounted.
    fn create(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()>;
    /// Loads a key from its `keylocation`.
    fn load_key(&self, dataset: &Dataset) -> Result<()>;
    /// Mounts at the dataset's mountpoint, over a folder that nothing can be written into.
    fn mount(&self, dataset: &Dataset, at: &Path) -> Result<()>;
    /// Unmounts what nobody uses.
    fn unmount(&self, dataset: &Dataset) -> Result<()>;
}

/// Through [`Zfs`], with the rights of this process.
pub struct Own<'a>(pub &'a dyn Zfs);

impl Hands for Own<'_> {
    fn create(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()> {
        self.0.create(dataset, properties)
    }

    fn load_key(&self, dataset: &Dataset) -> Result<()> {
        self.0.load_key(dataset, None)
    }

    fn mount(&self, dataset: &Dataset, _: &Path) -> Result<()> {
        self.0.mount(dataset)
    }

    fn unmount(&self, dataset: &Dataset) -> Result<()> {
        self.0.unmount(dataset)
    }
}

/// The same with root's rights: the folder below a mount is sealed first ([`crate::bare`]).
pub struct Root<'a>(pub &'a dyn Zfs);

impl Hands for Root<'_> {
    fn create(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()> {
        self.0.create(dataset, properties)
    }

    fn load_key(&self, dataset: &Dataset) -> Result<()> {
        self.0.load_key(dataset, None)
    }

    fn mount(&self, dataset: &Dataset, at: &Path) -> Result<()> {
        let failed = |e: std::io::Error| {
            let said = format!("prepare the folder {}: {e}", at.display());
            basalt_zfs::Error::new(Operation::Mount, dataset, Class::Io, said)
        };
        crate::bare::seal(at).map_err(failed)?;
        self.0.mount(dataset)
    }

    fn unmount(&self, dataset: &Dataset) -> Result<()> {
        self.0.unmount(dataset)
    }
}

/// Through the privileged helper, for an agent that isn't root.
pub struct Helper {
    /// The command that runs it, such as `sudo -n /usr/lib/basalt/basalt-zfs-helper`, without a shell.
    pub command: Vec<String>,
}

impl Helper {
    fn ask(&self, operation: Operation, verb: &str, dataset: &Dataset, input: &str) -> Result<()> {
        let refuse = |class, said: String| basalt_zfs::Error::new(operation, dataset, class, said);
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(refuse(Class::NotInstalled, "no helper is named".into()));
        };
        let shown = self.command.join(" ");
        let run = || -> std::io::Result<Output> {
            let mut child = Command::new(program)
                .args(arguments)
                .args([verb, dataset.as_str()])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut to) = child.stdin.take() {
                // A helper that has refused reads nothing; what it says is worth more.
                let _unread = to.write_all(input.as_bytes());
            }
            child.wait_with_output()
        };
        let output = run().map_err(|e| refuse(Class::NotInstalled, format!("{shown}: {e}")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(refuse(crate::helper::class_of(&said), format!("{shown} {verb}: {}", said.trim())))
    }
}

impl Hands for Helper {
    fn create(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()> {
        let input = crate::helper::written(properties)
            .map_err(|e| basalt_zfs::Error::new(Operation::Create, dataset, Class::Invalid, e.to_string()))?;
        self.ask(Operation::Create, "create", dataset, &input)
    }

    fn load_key(&self, dataset: &Dataset) -> Result<()> {
        self.ask(Operation::LoadKey, "load-key", dataset, "")
    }

    fn mount(&self, dataset: &Dataset, _: &Path) -> Result<()> {
        self.ask(Operation::Mount, "mount", dataset, "")
    }

    fn unmount(&self, dataset: &Dataset) -> Result<()> {
        self.ask(Operation::Unmount, "unmount", dataset, "")
    }
}

/// Why a plan was not done to its end.
#[derive(Clone, Debug)]
pub enum Stopped {
    /// Something is in the way; nothing was done.
    Obstacles(usize),
    /// Some steps need an operator's word; nothing was done.
    Risks(usize),
    /// A step failed; those before it are done.
    Step {
        /// How many are done.
        done: usize,
        /// Which failed; none where it was the mark.
        step: Option<Step>,
        /// Why.
        error: Box<basalt_zfs::Error>,
    },
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stopped::Obstacles(n) => write!(f, "nothing was done: {n} things are in the way"),
            Stopped::Risks(n) => write!(f, "nothing was done: {n} steps need your word (--yes)"),
            Stopped::Step { done, step: Some(step), error } => {
                write!(f, "{step}: {error}. {done} steps before it are done; the next apply goes on from there")
            }
            Stopped::Step { done, step: None, error } => {
                write!(f, "{error}. {done} steps are done; the next apply goes on from there")
            }
        }
    }
}

impl std::error::Error for Stopped {}

/// Does the steps of a plan in their order; `say` hears of each before it is done. `yes`: also those with a risk.
pub fn apply(
    layout: &Layout,
    plan: &Plan,
    zfs: &dyn Zfs,
    hands: &dyn Hands,
    yes: bool,
    say: &mut dyn FnMut(&Step),
) -> Result<(), Stopped> {
    if !plan.obstacles.is_empty() {
        return Err(Stopped::Obstacles(plan.obstacles.len()));
    }
    let risks = plan.risky().count();
    if risks > 0 && !yes {
        return Err(Stopped::Risks(risks));
    }
    let parent = layout.parent();
    let mark = (
        name(APPLYING_PROPERTY).map_err(|error| Stopped::Step { done: 0, step: None, error: error.into() })?,
        format!("{} steps", plan.steps.len()),
    );
    let makes_parent =
        plan.steps.iter().any(|planned| matches!(&planned.step, Step::Create { dataset, .. } if dataset == parent));
    let at_mark = |done| move |error: basalt_zfs::Error| Stopped::Step { done, step: None, error: error.into() };
    if !plan.steps.is_empty() && !makes_parent {
        zfs.set(parent, std::slice::from_ref(&mark)).map_err(at_mark(0))?;
    }
    for (done, planned) in plan.steps.iter().enumerate() {
        let step = &planned.step;
        say(step);
        let result = match step {
            Step::Create { dataset, properties } if dataset == parent => {
                // With its mark from the first moment on.
                let properties: Vec<_> = properties.iter().cloned().chain([mark.clone()]).collect();
                hands.create(dataset, &properties)
            }
            Step::Create { dataset, properties } => hands.create(dataset, properties),
            Step::Set { dataset, name, to } => zfs.set(dataset, &[(name.clone(), to.clone())]),
            Step::Inherit { dataset, name } => zfs.inherit(dataset, name),
            Step::LoadKey { dataset } => already(hands.load_key(dataset)),
            Step::Mount { dataset, at } => already(hands.mount(dataset, at)),
        };
        result.map_err(|error| Stopped::Step { done, step: Some(step.clone()), error: error.into() })?;
    }
    if unfinished(zfs, parent).map_err(at_mark(plan.steps.len()))?.is_some() {
        zfs.inherit(parent, &mark.0).map_err(at_mark(plan.steps.len()))?;
    }
    Ok(())
}

/// What an apply that did not end was about; none where none is under way.
pub fn unfinished(zfs: &dyn Zfs, parent: &Dataset) -> Result<Option<String>> {
    let found = zfs.properties(&Entity::from(parent), &[name(APPLYING_PROPERTY)?])?;
    Ok(found.into_iter().find(|property| property.source == Source::Local).map(|property| property.value))
}

/// ZFS mounts some by the way: a change of a mountpoint mounts again.
fn already(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.class() == Class::Already => Ok(()),
        other => other,
    }
}

fn name(name: &str) -> Result<PropertyName> {
    name.parse()
        .map_err(|e: basalt_zfs::NameError| basalt_zfs::Error::new(Operation::Set, name, Class::Invalid, e.to_string()))
}
