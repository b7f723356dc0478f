"""Every workload on every target in the same run, round by round; medians, ratios, a table and a plot. Started by run.sh.

Between two measurements everything is synced, so that no target pays for what another left behind.
"""
import json
import math
import os
import shutil
import statistics
import sys
import time

from targets import NULL, OURS, PEERS, Failed, arguments, drop_caches, machine, run, scratch_directory, settle_in, tree_tar, usable

COLOURS = {'plain': '#9a9a9a', 'passthrough': '#6b4fa0', 'gocryptfs': '#1f77b4', 'securefs': '#2a9d5c', 'encfs': '#b8860b',
           OURS: '#d62728', NULL: '#f4a3a3'}
WORKLOADS = {}


class Workload:
    """`unit` MB/s: more is better; s: less is. `floor`: what ours must reach as a multiple of the best peer, or of `against`."""

    def __init__(self, function, title, unit, floor, against, needs):
        self.function, self.title, self.unit, self.floor, self.against, self.needs = function, title, unit, floor, against, needs

    def speed(self, figure, other):
        """How many times as fast as `other` a figure is."""
        return figure / other if self.unit == 'MB/s' else other / figure


def workload(title, unit, floor=None, against='peer', needs=()):
    def register(function):
        WORKLOADS[function.__name__] = Workload(function, title, unit, floor, against, needs)
        return function
    return register


class Bench:
    """One target with what workloads leave in it for those after them."""

    def __init__(self, target, tar, size):
        self.target, self.tar, self.size = target, tar, size
        self.file, self.tree, self.copy = (f'{target.path}/{name}' for name in ('file', 'tree', 'copy'))

    def fio(self, *options):
        """Megabytes a second, of all jobs together."""
        text = run('fio', '--output-format=json', '--name=job', f'--filename={self.file}', f'--size={self.size}',
                   '--ioengine=psync', '--fallocate=none', *options)
        jobs = json.loads(text[text.index('{'):])['jobs']
        if any(job['error'] for job in jobs):
            raise Failed(f'fio: {os.strerror(jobs[0]["error"])}')
        return sum(job[way]['bw_bytes'] for job in jobs for way in ('read', 'write')) / 1e6

    def timed(self, *argv):
        start = time.perf_counter()
        run(*argv)
        return time.perf_counter() - start

    def need_file(self):
        if not os.path.exists(self.file):
            self.fio('--rw=write', '--bs=1m', '--end_fsync=1')

    def need_tree(self):
        if not os.path.exists(f'{self.tree}.done'):
            untar(self)

    def need_copy(self):
        if not os.path.exists(self.copy):
            run('cp', '-a', self.tree, self.copy)

    def remove(self, *paths):
        run('rm', '-rf', *paths)


@workload('sequential write, 1 MiB, fsync at the end', 'MB/s', 2.0)
def seqwrite(b):
    b.remove(b.file)
    os.sync()
    return b.fio('--rw=write', '--bs=1m', '--end_fsync=1')


@workload('sequential write, 128 KiB', 'MB/s', 1.7)
def seqwrite_128k(b):
    b.remove(b.file)
    os.sync()
    return b.fio('--rw=write', '--bs=128k')


@workload('sequential read, cold', 'MB/s', 1.4, needs=['file'])
def seqread_cold(b):
    drop_caches()
    return b.fio('--rw=read', '--bs=1m', '--invalidate=0')


@workload('sequential read, warm', 'MB/s', 0.95, against='plain', needs=['file'])
def seqread_warm(b):
    b.fio('--rw=read', '--bs=1m', '--invalidate=0')
    return b.fio('--rw=read', '--bs=1m', '--invalidate=0')


@workload('random read 4 KiB, cold', 'MB/s', 1.0, needs=['file'])
def randread(b):
    drop_caches()
    return b.fio('--rw=randread', '--bs=4k', '--invalidate=0', '--io_size=96m')


@workload('random read 4 KiB, cold, 4 jobs', 'MB/s', 1.4, needs=['file'])
def randread_4jobs(b):
    drop_caches()
    return b.fio('--rw=randread', '--bs=4k', '--invalidate=0', '--io_size=48m', '--numjobs=4', '--thread', '--group_reporting')


@workload('random write 4 KiB', 'MB/s', 2.0, needs=['file'])
def randwrite(b):
    os.sync()
    return b.fio('--rw=randwrite', '--bs=4k', '--io_size=96m', '--end_fsync=1')


@workload('random write 4 KiB, fdatasync each', 'MB/s', 1.0, needs=['file'])
def randwrite_sync(b):
    os.sync()
    return b.fio('--rw=randwrite', '--bs=4k', '--io_size=16m', '--fdatasync=1')


@workload('random read-write 16 KiB, 4 jobs', 'MB/s', 1.5, needs=['file'])
def randrw_4jobs(b):
    os.sync()
    return b.fio('--rw=randrw', '--bs=16k', '--io_size=48m', '--numjobs=4', '--thread', '--group_reporting', '--end_fsync=1')


@workload('untar', 's', 1.5)
def untar(b):
    b.remove(b.tree, f'{b.tree}.done')
    os.mkdir(b.tree)
    os.sync()
    seconds = b.timed('tar', '-xf', b.tar, '-C', b.tree)
    # Only a whole tree is worth reading.
    open(f'{b.tree}.done', 'w').close()
    return seconds


@workload('cp -a', 's', 1.5, needs=['tree'])
def copy_tree(b):
    b.remove(b.copy)
    drop_caches()
    return b.timed('cp', '-a', b.tree, b.copy)


@workload('rm -rf', 's', 1.5, needs=['tree', 'copy'])
def remove_tree(b):
    os.sync()
    return b.timed('rm', '-rf', b.copy)


@workload('ls -lR, cold', 's', 1.5, needs=['tree'])
def ls_cold(b):
    drop_caches()
    return b.timed('ls', '-lR', b.tree)


@workload('ls -lR, warm', 's', 3.0, needs=['tree'])
def ls_warm(b):
    run('ls', '-lR', b.tree)
    return b.timed('ls', '-lR', b.tree)


@workload('read the tree, cold', 's', 1.3, needs=['tree'])
def read_tree(b):
    drop_caches()
    return b.timed('sh', '-c', 'find "$1" -type f -print0 | xargs -0 cat >/dev/null', 'sh', b.tree)


COMMITS = '''
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("create table t(id integer primary key, text text)")
db.commit()
for _ in range(400):
    db.executemany("insert into t(text) values (?)", [("x" * 200,)] * 20)
    db.commit()
if db.execute("pragma integrity_check").fetchone() != ("ok",):
    sys.exit("the database is damaged")
'''


@workload('sqlite, 400 commits', 's', 1.3)
def sqlite(b):
    path = f'{b.target.path}/db'
    b.remove(path, f'{path}-journal')
    os.sync()
    return b.timed(sys.executable, '-c', COMMITS, path)


def measure(work, bench):
    for need in work.needs:
        getattr(bench, f'need_{need}')()
    return work.function(bench)


def medians(result):
    """{workload: {target: median or None}}; a round that failed counts for nothing unless all did."""
    return {key: {name: statistics.median(figures) if (figures := [x for x in all_rounds if x is not None]) else None
                  for name, all_rounds in by_target.items()}
            for key, by_target in result['figures'].items()}


def best_peer(work, row):
    peers = [row[name] for name in PEERS if row.get(name)]
    return (max(peers) if work.unit == 'MB/s' else min(peers)) if peers else None


def number(figure, unit):
    if figure is None:
        return '–'
    return f'{figure:.0f}' if unit == 'MB/s' and figure >= 10 else f'{figure:.2f}' if figure >= 0.1 else f'{figure:.3f}'


def ratio(work, row, name, other):
    if not row.get(name) or not other:
        return '–'
    times = work.speed(row[name], other)
    return f'{times:.2f} ×'


def table(result):
    names, rows = result['targets'], medians(result)
    lines = [f'{result["machine"]}; backing {result["backing"]}, {result["rounds"]} rounds, medians; file of {result["size"]}, '
             f'tree of {result["tree_files"]} entries. MB/s: more is better; s: less is. Ratios are those of {OURS}: above 1 it is faster.',
             '']
    heads = ['workload', 'unit', *names, '× best peer', 'floor', '× passthrough', '× null cipher', '× plain']
    lines += ['| ' + ' | '.join(heads) + ' |', '|---|---|' + '---:|' * (len(heads) - 2)]
    for key, row in rows.items():
        work = WORKLOADS[key]
        cells = [work.title, work.unit, *(number(row[name], work.unit) for name in names)]
        peer = best_peer(work, row)
        against = row.get('plain') if work.against == 'plain' else peer
        floor = '–'
        if work.floor:
            floor = f'{work.floor:g} ×' + (' plain' if work.against == 'plain' else '')
            if row.get(OURS) and against:
                floor += ' ✓' if work.speed(row[OURS], against) >= work.floor else ' **short**'
        cells += [ratio(work, row, OURS, peer), floor, ratio(work, row, OURS, row.get('passthrough')),
                  ratio(work, row, OURS, row.get(NULL)), ratio(work, row, OURS, row.get('plain'))]
        lines.append('| ' + ' | '.join(cells) + ' |')
    if result['failures']:
        lines += ['', 'Did not complete:']
        lines += [f'- {failure}' for failure in dict.fromkeys(result['failures'])]
    return '\n'.join(lines) + '\n'


def plot(result):
    """Speed relative to the best peer on a logarithmic axis: a line a workload, a mark a target."""
    names, rows = result['targets'], {k: r for k, r in medians(result).items() if best_peer(WORKLOADS[k], r)}
    left, width, top, step = 290, 640, 70, 26
    height = top + step * len(rows) + 46
    marks = {key: {name: WORKLOADS[key].speed(row[name], best_peer(WORKLOADS[key], row)) for name in names if row[name]}
             for key, row in rows.items()}
    every = [x for row in marks.values() for x in row.values()] or [1]
    low, high = min(0.5, *every) * 0.9, max(2, *every) * 1.1

    def x(value):
        return left + width * math.log(value / low) / math.log(high / low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 30}" height="{height}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="100%" height="100%" fill="white"/>',
           f'<text x="12" y="24" font-size="15" font-weight="bold">Speed relative to the best encrypting peer '
           f'(logarithmic; further right is faster)</text>']
    at = 12
    for name in names:
        out.append(f'<circle cx="{at + 6}" cy="44" r="5" fill="{COLOURS[name]}"/><text x="{at + 16}" y="48">{name}</text>')
        at += 34 + 8 * len(name)
    for tick in [t * 10 ** e for e in range(-2, 3) for t in (1, 2, 5)]:
        if low <= tick <= high:
            weight = 1.6 if tick == 1 else 0.6
            out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - 34}" stroke="#bbb" stroke-width="{weight}"/>')
            out.append(f'<text x="{x(tick):.1f}" y="{height - 16}" text-anchor="middle">{tick:g} ×</text>')
    for index, (key, row) in enumerate(marks.items()):
        y = top + step * index + step / 2
        out.append(f'<text x="{left - 14}" y="{y + 4:.1f}" text-anchor="end">{WORKLOADS[key].title}</text>')
        out.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        for name in sorted(row, key=lambda n: n == OURS):
            radius = 6.5 if name == OURS else 5
            out.append(f'<circle cx="{x(row[name]):.1f}" cy="{y:.1f}" r="{radius}" fill="{COLOURS[name]}" stroke="white" stroke-width="0.8">'
                       f'<title>{name}: {row[name]:.2f} ×</title></circle>')
    return '\n'.join(out) + '\n</svg>\n'


def write(result, directory):
    os.makedirs(directory, exist_ok=True)
    for name, text in (('results.json', json.dumps(result, indent=1)), ('table.md', table(result)), ('plot.svg', plot(result))):
        with open(f'{directory}/{name}', 'w') as f:
            f.write(text)


def go(options, chosen, scratch, tars, limit):
    keys = options.workloads.split(',') if options.workloads else list(WORKLOADS)
    for key in keys:
        if key not in WORKLOADS:
            sys.exit(f'{key}: not a workload; there are {", ".join(WORKLOADS)}')
    tar = tree_tar(options.tree, tars, options.tree_entries)
    files = len(run('tar', '-tf', tar).splitlines())
    names = [target.name for target in chosen]
    result = {'machine': machine(), 'backing': options.backing, 'rounds': options.rounds, 'size': options.size, 'tree_files': files,
              'descriptors': limit, 'targets': names, 'started': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
              'figures': {key: {name: [] for name in names} for key in keys}, 'failures': []}
    for target in chosen:
        target.make()
        target.up()
    benches = [Bench(target, tar, options.size) for target in chosen]
    for turn in range(options.rounds):
        for key in keys:
            # The other way round each time, so that neither end of the line is favoured.
            for bench in benches if turn % 2 == 0 else benches[::-1]:
                figure = None
                try:
                    figure = measure(WORKLOADS[key], bench)
                except (Failed, OSError) as e:
                    result['failures'].append(f'{bench.target.name}, {WORKLOADS[key].title}: {e}'.replace(scratch, ''))
                    print(f'FAILED: {result["failures"][-1]}', file=sys.stderr)
                    # A daemon that died or has no descriptors left gets a new chance at the next workload.
                    bench.target.remount()
                result['figures'][key][bench.target.name].append(figure)
            row = {name: figures[-1] for name, figures in result['figures'][key].items()}
            print(f'{turn + 1}/{options.rounds} {key:16}' + ''.join(f' {n} {number(f, WORKLOADS[key].unit)}' for n, f in row.items()),
                  file=sys.stderr)
        write(dict(result, rounds=turn + 1), options.out)
    return result


def main():
    parser = arguments('Compares envelopefs with its peers.')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--workloads', default='', help=f'some of {", ".join(WORKLOADS)}')
    parser.add_argument('--render', metavar='JSON', help='only make the table and the plot again from these results')
    options = parser.parse_args()
    if options.render:
        with open(options.render) as f:
            write(json.load(f), options.out)
        return
    limit = settle_in()
    scratch = scratch_directory(options.backing)
    tars = scratch_directory('tmpfs')
    chosen = usable(options.targets, scratch)
    try:
        result = go(options, chosen, scratch, tars, limit)
        print(table(result))
        print(f'Written: {options.out}/table.md, plot.svg, results.json', file=sys.stderr)
    finally:
        for target in chosen:
            target.remove()
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(tars, ignore_errors=True)


if __name__ == '__main__':
    main()
