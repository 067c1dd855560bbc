//! A program in a process group of its own, which ends as one: when its call is over, when the call is dropped, and
//! when the agent itself is killed with -9.
//!
//! The last needs help, since a killed process can't clean up. Each program is started through `/bin/sh`, which first
//! leaves a watcher in the group and then becomes the program (`exec`: same process, same exit status). The watcher
//! reads from a pipe whose other end only this process holds. However this process ends, the system closes that end,
//! the watcher wakes and kills its group, itself included. There is no moment without cover: the pipe exists before
//! the shell does. A program that leaves its process group (`setsid`, a daemon) leaves this care too.
//!
//! The watcher's parent ends at once, so its end is the init process's to reap. In a container whose first process is
//! the agent nobody does; [`init_advice`](super::init_advice) says so at the start.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// The shell that becomes the program.
pub(super) const SHELL: &str = "/bin/sh";

/// Where the watcher finds the pipe under its number, which a shell's own redirections can't express beyond 9.
pub(super) const DESCRIPTORS: &str = "/dev/fd";

/// The shell's name for itself: its own errors start with it, and so differ from the program's.
pub(super) const SHELL_NAME: &str = "semel-exec";

/// `$1` is the pipe's number, the rest the program. The watcher is started from a subshell that ends at once, so that
/// it is no child of the program, and it keeps none of the program's streams open.
const SCRIPT: &str = r#"
exec 9<"/dev/fd/$1" || exit 126
shift
( ( trap '' HUP INT QUIT TERM; read -r end <&9; kill -9 0 ) </dev/null >/dev/null 2>&1 & )
exec 9<&-
exec "$@"
"#;

/// A running program and everything it started that is still in its group. Dropping it kills all of them.
pub(super) struct Group {
    leader: Child,
    /// Held for its closing only: that wakes the watcher.
    lifeline: Option<PipeWriter>,
}

/// The program's ends of its three streams.
pub(super) struct Streams {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

impl Group {
    /// Starts `program` with exactly these arguments and this environment, in `folder`.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[String],
        environment: &[(OsString, OsString)],
        folder: &Path,
    ) -> io::Result<(Self, Streams)> {
        let (read_end, lifeline) = io::pipe()?;
        // Only the reading end is inherited. Programs that are started at the same moment may inherit it as well;
        // it tells them nothing, and the watcher wakes when the last *writing* end closes.
        rustix::io::fcntl_setfd(read_end.as_fd(), rustix::io::FdFlags::empty())?;
        let mut leader = Command::new(SHELL)
            .args(["-c", SCRIPT, SHELL_NAME])
            .arg(read_end.as_raw_fd().to_string())
            .arg(program)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (OsStr::new(name), OsStr::new(value))))
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let streams = (leader.stdin.take(), leader.stdout.take(), leader.stderr.take());
        let group = Self { leader, lifeline: Some(lifeline) };
        match streams {
            (Some(stdin), Some(stdout), Some(stderr)) => Ok((group, Streams { stdin, stdout, stderr })),
            _ => Err(io::Error::other("the program was started without its streams")),
        }
    }

    /// Waits for the program to end, and ends what it leaves behind in its group.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.leader.wait().await;
        // The watcher kills from inside the group. From here the group's number could already be another's.
        self.lifeline = None;
        status
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The leader is not yet waited for, so its number still is its group's.
        let group = self.leader.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            // An error means that nothing of it is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
