"""The file systems that are compared: how each is made, mounted, found among the processes, and taken away.

Knows no workload. Every target gets an encrypted directory of its own below one scratch directory.
"""
import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMES = ['plain', 'passthrough', 'gocryptfs', 'securefs', 'encfs', 'envelopefs', 'null-cipher']
PEERS = ['gocryptfs', 'securefs', 'encfs']
OURS, NULL = 'envelopefs', 'null-cipher'


class Failed(Exception):
    """A command that did not succeed; says why in one line."""


def run(*argv, quiet=True, timeout=600, env=None, stdin=None):
    """Runs a command and returns what it printed."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='replace', timeout=timeout,
                              env=env, input=stdin, stdin=None if stdin else subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Failed(f'{argv[0]}: not done after {timeout} s') from None
    if done.returncode != 0 and quiet:
        said = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        raise Failed(f'{argv[0]}: {said[0][:200]}' + (f' (and {len(said) - 1} lines more)' if len(said) > 1 else ''))
    return done.stdout


def drop_caches():
    """Clean pages, dentries and inodes go; on tmpfs the backing files' own pages stay, those of the mounts go."""
    os.sync()
    with open('/proc/sys/vm/drop_caches', 'w') as f:
        f.write('3')


def ended(pid):
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        with open(f'/proc/{pid}/cmdline', 'rb') as f:
            return not f.read()
    except OSError:
        return True


class Target:
    """One file system. `path` is where its files are seen."""

    def __init__(self, name, scratch):
        self.name = name
        self.cipher = f'{scratch}/{name}.c'
        self.mount = f'{scratch}/{name}.m'
        self.config = f'{scratch}/{name}.config'
        self.path = self.cipher if name == 'plain' else self.mount
        self.child = None

    def program(self):
        """The program that serves it; None for the backing file system itself."""
        return {
            'plain': None,
            'passthrough': os.environ.get('PASSTHROUGH_LL') or 'passthrough_ll',
            OURS: os.environ.get('ENVELOPEFS') or f'{ROOT}/target/release/envelopefs',
            NULL: os.environ.get('ENVELOPEFS_NULL') or f'{ROOT}/target/bench/envelopefs-null',
        }.get(self.name, self.name)

    def missing(self):
        program = self.program()
        return program is not None and shutil.which(program) is None

    def environment(self):
        return dict(os.environ, ENVELOPEFS_CONFIG_DIR=self.config)

    def make(self):
        """A new, empty volume. Passphrases are hardened as little as each peer allows: that is not what is measured."""
        os.makedirs(self.cipher)
        os.makedirs(self.mount)
        program = self.program()
        if self.name == 'gocryptfs':
            run(program, '-q', '-init', '-scryptn', '10', '-extpass', 'echo x', self.cipher)
        elif self.name == 'securefs':
            run(program, 'create', '--pass', 'x', '--rounds', '1', self.cipher)
        elif self.name in (OURS, NULL):
            null = ['--insecure-null-cipher'] if self.name == NULL else []
            run(program, 'init', *null, self.cipher, env=self.environment())

    def up(self):
        """Mounts, and returns when the mount answers."""
        program, c, m = self.program(), self.cipher, self.mount
        if self.name == 'plain':
            return
        if self.name == 'passthrough':
            options = f'source={c},writeback,cache=always,xattr,clone_fd'
            self.child = subprocess.Popen([program, m, '-f', '-o', options], stdin=subprocess.DEVNULL,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        elif self.name == 'gocryptfs':
            run(program, '-q', '-extpass', 'echo x', c, m)
        elif self.name == 'securefs':
            run(program, 'mount', '-b', '--pass', 'x', c, m)
        elif self.name == 'encfs':
            run(program, '--standard', '--extpass=echo x', c, m)
        else:
            run(program, 'mount', c, m, env=self.environment())
        end = time.monotonic() + 10
        while not os.path.ismount(m):
            if time.monotonic() > end:
                raise Failed(f'{self.name}: not mounted after 10 s')
            time.sleep(0.0002)

    def down(self):
        """Unmounts and waits for the daemon's end. Never fails: a daemon that died leaves a mount that must go too."""
        if self.name == 'plain':
            return
        pid = self.pid()
        for attempt in range(20):
            if subprocess.run(['fusermount3', '-u', self.mount], stderr=subprocess.DEVNULL).returncode == 0:
                break
            if not os.path.ismount(self.mount) and attempt:
                break
            time.sleep(0.1)
        else:
            subprocess.run(['umount', '-l', self.mount], stderr=subprocess.DEVNULL)
        if self.child:
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
            self.child = None
        for _ in range(500):
            if pid is None or ended(pid):
                break
            time.sleep(0.02)

    def remove(self):
        self.down()
        for path in (self.mount, self.cipher, self.config):
            if not os.path.ismount(path):
                shutil.rmtree(path, ignore_errors=True)

    def pid(self):
        """The daemon that serves the mount, told by the mountpoint among its arguments."""
        if self.child:
            return self.child.pid
        program = self.program()
        if program is None:
            return None
        want, found = os.path.basename(program).encode(), []
        for entry in os.listdir('/proc'):
            if not entry.isdigit():
                continue
            try:
                with open(f'/proc/{entry}/cmdline', 'rb') as f:
                    argv = f.read().split(b'\0')
            except OSError:
                continue
            if os.path.basename(argv[0]) == want and self.mount.encode() in argv:
                found.append(int(entry))
        return max(found, default=None)

    def remount(self):
        self.down()
        self.up()


def scratch_directory(backing):
    """A scratch directory on tmpfs or below a directory of the caller's."""
    base = '/dev/shm' if backing == 'tmpfs' else os.path.abspath(backing)
    return tempfile.mkdtemp(prefix='envelopefs-bench-', dir=base)


def tree_tar(source, scratch, entries):
    """A tar with about `entries` entries of a directory, or the tar that is given, where dropping caches does not reach it."""
    tar = f'{scratch}/tree.tar'
    if not os.path.isdir(source):
        shutil.copyfile(source, tar)
        return tar
    listing = f'{scratch}/tree.list'
    count = 0
    with open(listing, 'wb') as out:
        for path, directories, files in os.walk(os.fsencode(source)):
            directories.sort()
            inside = os.path.relpath(path, os.fsencode(source))
            for name in [b'.'] + sorted(files):
                full = os.path.join(path, name)
                if name == b'.' or os.path.isfile(full):
                    out.write(os.path.normpath(os.path.join(inside, name)) + b'\0')
                    count += 1
            if count >= entries:
                break
    run('tar', '-cf', tar, '-C', source, '--no-recursion', '--null', '-T', listing)
    return tar


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--backing', default='tmpfs', metavar='tmpfs|DIR', help='where the encrypted directories lie')
    parser.add_argument('--targets', default=','.join(NAMES), help='what is compared')
    parser.add_argument('--tree', default=os.path.expanduser('~/.cargo/registry/src'), metavar='TAR|DIR', help='a tree of source files')
    parser.add_argument('--tree-entries', type=int, default=17000, metavar='N', help='how much of a directory is taken')
    parser.add_argument('--size', default='512m', help='size of the file that is read and written')
    parser.add_argument('--out', default=f'{ROOT}/target/bench/results', metavar='DIR', help='where the results go')
    return parser


def usable(names, scratch):
    """The targets among `names` whose programs are here; the others are named on standard error."""
    chosen = []
    for name in names.split(','):
        if name not in NAMES:
            sys.exit(f'{name}: not a target; there are {", ".join(NAMES)}')
        target = Target(name, scratch)
        if target.missing():
            print(f'LEFT OUT: {name}: {target.program()} is not here', file=sys.stderr)
        else:
            chosen.append(target)
    return chosen


def settle_in():
    """What all targets inherit: as many descriptors as may be had, and an orderly end where the run is interrupted."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if os.getuid() != 0:
        sys.exit('run this as root: it drops caches and reads what other processes cost')
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f'THE MACHINE IS NOT QUIET: load {busy:.2f}', file=sys.stderr)
    return hard


def machine():
    """What figures depend on, for the head of a table."""
    model = 'unknown processor'
    with open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('model name'):
                model = line.split(':', 1)[1].strip()
                break
    with open('/proc/meminfo') as f:
        memory = int(f.readline().split()[1]) / 1048576
    return f'{os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {os.uname().release}'
