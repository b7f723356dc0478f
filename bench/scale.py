"""What the work costs each target and how that grows with size, number and parallelism. One table. Started by scale.sh.

Every measure gets a fresh volume on every target. Processor time is the daemon's own (utime + stime), work that it puts off included.
"""
import json
import os
import random
import shutil
import statistics
import sys
import time

from targets import Failed, arguments, drop_caches, machine, run, scratch_directory, settle_in, tree_tar, usable

MEASURES = {}
# Longer than any target puts work off: the background commit comes every 5 s.
LATER = 7
TICK = os.sysconf('SC_CLK_TCK')


def measure(function):
    """A measure writes its figures into the rows that it is given, so that those before a failure count."""
    MEASURES[function.__name__] = function
    return function


class Daemon:
    """Figures of a target's daemon; without one, nothing is known."""

    def __init__(self, target):
        self.pid = target.pid()

    def cpu(self):
        """Seconds of processor time so far."""
        if self.pid is None:
            return None
        with open(f'/proc/{self.pid}/stat') as f:
            fields = f.read().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def spent(self, work):
        """Processor seconds that `work` costs, with what follows in the background."""
        before = self.cpu()
        work()
        if before is None:
            return None
        os.sync()
        time.sleep(LATER)
        return self.cpu() - before

    def memory(self, field='VmRSS'):
        """MiB; `VmHWM` is the most since `forget_peak`."""
        if self.pid is None:
            return None
        with open(f'/proc/{self.pid}/status') as f:
            for line in f:
                if line.startswith(field + ':'):
                    return int(line.split()[1]) / 1024
        return None

    def forget_peak(self):
        if self.pid is not None:
            with open(f'/proc/{self.pid}/clear_refs', 'w') as f:
                f.write('5')

    def descriptors(self):
        return None if self.pid is None else len(os.listdir(f'/proc/{self.pid}/fd'))


def over(figure, divisor):
    return None if figure is None else figure / divisor


def bytes_of(size):
    units = {'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}
    return int(size[:-1]) * units[size[-1].lower()] if size[-1].lower() in units else int(size)


def fio(path, *options, timeout=300):
    """Megabytes a second, of all jobs together."""
    text = run('fio', '--output-format=json', '--name=job', '--ioengine=psync', '--fallocate=none', '--thread', '--group_reporting',
               f'--{"directory" if os.path.isdir(path) else "filename"}={path}', *options, timeout=timeout)
    jobs = json.loads(text[text.index('{'):])['jobs']
    if any(job['error'] for job in jobs):
        raise Failed(f'fio: {os.strerror(jobs[0]["error"])}')
    return sum(job[way]['bw_bytes'] for job in jobs for way in ('read', 'write')) / 1e6


def percentile(samples, share):
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


@measure
def start(target, options, rows):
    """From the command to a mount that answers."""
    if target.name == 'plain':
        return
    times = []
    for _ in range(20):
        target.down()
        begin = time.perf_counter()
        target.up()
        os.stat(target.path)
        times.append((time.perf_counter() - begin) * 1e3)
    rows['start to mounted, median (ms)'] = statistics.median(times)
    rows['start to mounted, worst of 20 (ms)'] = max(times)


@measure
def cpu(target, options, rows):
    daemon, gib = Daemon(target), bytes_of(options.size) / (1 << 30)
    path = f'{target.path}/file'
    spent = daemon.spent(lambda: fio(path, '--rw=write', '--bs=1m', f'--size={options.size}', '--end_fsync=1'))
    rows['CPU s per GiB written'] = over(spent, gib)
    drop_caches()
    spent = daemon.spent(lambda: fio(path, '--rw=read', '--bs=1m', f'--size={options.size}', '--invalidate=0'))
    rows['CPU s per GiB read'] = over(spent, gib)
    tree = f'{target.path}/tree'
    os.mkdir(tree)
    spent = daemon.spent(lambda: run('tar', '-xf', options.tar, '-C', tree))
    rows['CPU s per 1 000 entries unpacked'] = over(spent, options.tree_files / 1000)
    drop_caches()
    spent = daemon.spent(lambda: run('sh', '-c', 'find "$1" -type f -print0 | xargs -0 cat >/dev/null', 'sh', tree))
    rows['CPU s per 1 000 entries read'] = over(spent, options.tree_files / 1000)


@measure
def memory(target, options, rows):
    daemon = Daemon(target)
    rows['RSS idle (MiB)'] = daemon.memory()
    daemon.forget_peak()
    fio(target.path, '--rw=randrw', '--bs=64k', '--size=4m', '--numjobs=64', '--time_based', '--runtime=5')
    rows['RSS at most, 64 threads (MiB)'] = daemon.memory('VmHWM')


@measure
def directory(target, options, rows):
    """One directory of N and of N/10 entries: where the work is linear, an entry costs the same in both."""
    daemon = Daemon(target)
    for count in (options.entries // 10, options.entries):
        path = f'{target.path}/d{count}'
        os.mkdir(path)
        names = [f'{path}/entry-{n:07}' for n in range(count)]

        def per_entry(what, work):
            begin = time.perf_counter()
            work()
            rows[f'{what}, {count} entries (µs each)'] = (time.perf_counter() - begin) * 1e6 / count

        def create():
            for name in names:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

        def look_up():
            for name in names:
                os.stat(name)

        per_entry('create', create)
        drop_caches()
        found = []
        per_entry('list, cold', lambda: found.extend(os.listdir(path)))
        if len(found) != count:
            raise Failed(f'{len(found)} of {count} entries are listed')
        random.Random(1).shuffle(names)
        drop_caches()
        per_entry('look up in any order, cold', look_up)
    rows[f'descriptors, {options.entries} inodes known'] = daemon.descriptors()
    rows[f'RSS, {options.entries} inodes known (MiB)'] = daemon.memory()


@measure
def sparse(target, options, rows):
    """4 KiB at random places of a file that is nearly all hole."""
    for size, title in ((1 << 30, '1 GiB'), (1 << 40, '1 TiB')):
        path = f'{target.path}/sparse'
        with open(path, 'wb') as f:
            f.truncate(size)
        # Without a map of what was hit, which would be larger than the load; the same places in every run.
        places = [f'--size={size}', '--bs=4k', '--io_size=32m', '--norandommap', '--random_generator=tausworthe64', '--invalidate=0']
        rows[f'random write 4 KiB in a sparse file of {title} (MB/s)'] = fio(path, '--rw=randwrite', '--end_fsync=1', *places)
        drop_caches()
        rows[f'random read 4 KiB in a sparse file of {title} (MB/s)'] = fio(path, '--rw=randread', *places)
        os.unlink(path)


@measure
def writers(target, options, rows):
    """256 MiB in pieces of 128 KiB, synced at the end: by one writer, by 16 to a file each, by 16 to disjoint parts of one file."""
    path = f'{target.path}/shared'
    shape = ['--rw=write', '--bs=128k', '--end_fsync=1']
    rows['1 writer (MB/s)'] = fio(path, '--size=256m', *shape)
    os.unlink(path)
    rows['16 writers, 16 files (MB/s)'] = fio(target.path, '--size=16m', '--numjobs=16', *shape)
    for name in os.listdir(target.path):
        if name.startswith('job'):
            os.unlink(f'{target.path}/{name}')
    rows['16 writers, one file (MB/s)'] = fio(path, '--size=16m', '--offset_increment=16m', '--numjobs=16', *shape)


@measure
def opening(target, options, rows):
    """open(2) alone, and with the first read: a target may put the work off until then. Cold is a new mount with no caches."""
    names = []
    for directory in range(20):
        os.mkdir(f'{target.path}/d{directory}')
        for file in range(100):
            names.append(f'{target.path}/d{directory}/f{file}')
            with open(names[-1], 'wb') as f:
                f.write(b'x' * 4000)
    random.Random(1).shuffle(names)
    for heat in ('cold', 'warm'):
        if heat == 'cold':
            target.remount()
            drop_caches()
        opens, reads = [], []
        for name in names:
            begin = time.perf_counter()
            fd = os.open(name, os.O_RDONLY)
            opened = time.perf_counter()
            os.read(fd, 4096)
            reads.append((time.perf_counter() - begin) * 1e6)
            opens.append((opened - begin) * 1e6)
            os.close(fd)
        for what, samples in (('open', opens), ('open and first read', reads)):
            rows[f'{what}, {heat}, p50 (µs)'] = percentile(samples, 0.5)
            rows[f'{what}, {heat}, p99 (µs)'] = percentile(samples, 0.99)


@measure
def fsync(target, options, rows):
    """4 KiB at a random place of a file of 64 MiB and fsync(2), timed as one: some targets do the work in the first, some in the second."""
    path = f'{target.path}/file'
    fio(path, '--rw=write', '--bs=1m', '--size=64m', '--end_fsync=1')
    fd = os.open(path, os.O_WRONLY)
    places, samples = random.Random(1), []
    for _ in range(1000):
        begin = time.perf_counter()
        os.pwrite(fd, b'y' * 4096, places.randrange(16384) * 4096)
        os.fsync(fd)
        samples.append((time.perf_counter() - begin) * 1e6)
    os.close(fd)
    rows['write 4 KiB and fsync, p50 (µs)'] = percentile(samples, 0.5)
    rows['write 4 KiB and fsync, p99 (µs)'] = percentile(samples, 0.99)


def number(figure):
    if figure is None:
        return '–'
    return f'{figure:.0f}' if figure >= 100 else f'{figure:.1f}' if figure >= 10 else f'{figure:.2f}'


def table(result):
    names = result['targets']
    lines = [f'{result["machine"]}; backing {result["backing"]}; file of {result["size"]}, tree of {result["tree_files"]} entries. '
             'CPU is that of the daemon.', '',
             '| measure | ' + ' | '.join(names) + ' |', '|---|' + '---:|' * len(names)]
    for row, figures in result['rows'].items():
        lines.append(f'| {row} | ' + ' | '.join(number(figures.get(name)) for name in names) + ' |')
    if result['failures']:
        lines += ['', 'Did not complete:'] + [f'- {failure}' for failure in result['failures']]
    return '\n'.join(lines) + '\n'


def write(result, directory):
    os.makedirs(directory, exist_ok=True)
    for name, text in (('scale.json', json.dumps(result, indent=1)), ('scale.md', table(result))):
        with open(f'{directory}/{name}', 'w') as f:
            f.write(text)


def go(options, chosen, scratch):
    keys = options.measures.split(',') if options.measures else list(MEASURES)
    for key in keys:
        if key not in MEASURES:
            sys.exit(f'{key}: not a measure; there are {", ".join(MEASURES)}')
    result = {'machine': machine(), 'backing': options.backing, 'size': options.size, 'tree_files': options.tree_files,
              'targets': [target.name for target in chosen], 'rows': {}, 'failures': []}
    for key in keys:
        for target in chosen:
            begin, rows = time.monotonic(), {}
            try:
                target.make()
                target.up()
                MEASURES[key](target, options, rows)
            except (Failed, OSError) as e:
                result['failures'].append(f'{target.name}, {key}: {e}'.replace(scratch, ''))
                print(f'FAILED: {result["failures"][-1]}', file=sys.stderr)
            finally:
                target.remove()
            for row, figure in rows.items():
                result['rows'].setdefault(row, {})[target.name] = figure
            print(f'{key} {target.name}: {time.monotonic() - begin:.1f} s', file=sys.stderr)
        write(result, options.out)
    return result


def main():
    parser = arguments('What the work costs, and how that grows.')
    parser.add_argument('--measures', default='', help=f'some of {", ".join(MEASURES)}')
    parser.add_argument('--entries', type=int, default=100000, metavar='N', help='entries of the large directory')
    options = parser.parse_args()
    settle_in()
    scratch, tars = scratch_directory(options.backing), scratch_directory('tmpfs')
    chosen = usable(options.targets, scratch)
    try:
        options.tar = tree_tar(options.tree, tars, options.tree_entries)
        options.tree_files = len(run('tar', '-tf', options.tar).splitlines())
        print(table(go(options, chosen, scratch)))
        print(f'Written: {options.out}/scale.md, scale.json', file=sys.stderr)
    finally:
        for target in chosen:
            target.remove()
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(tars, ignore_errors=True)


if __name__ == '__main__':
    main()
