"""Archives made here, a server on localhost: nothing in these tests needs the network."""
import dataclasses
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import zipfile

import pytest

from hgd_det.data import archives, download, prepare, shapes
from hgd_det.errors import UserError

pytestmark = pytest.mark.thorough


def pack(archive, members):
    """members: name -> bytes, or a TarInfo to add as it is."""
    with tarfile.open(archive, 'w') as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """A tiny VOC2007 trainval and test, VOC2012 and COCO, in archives of the published names."""
    root = tmp_path_factory.mktemp('originals')
    shapes.generate(root / 'set', train=4, test=2)
    voc = root / 'set/VOC2007'
    for split, year, number in (('trainval', 2007, 0), ('test', 2007, 1), ('trainval', 2012, 2)):
        members = {}
        listing = 'test' if split == 'test' else 'trainval'
        names = (voc / f'ImageSets/Main/{listing}.txt').read_text().split()
        top = f'VOCdevkit/VOC{year}'
        members[f'{top}/ImageSets/Main/{split}.txt'] = '\n'.join(names).encode()
        members[f'{top}/SegmentationClass/{names[0]}.png'] = b'not needed'
        for name in names:
            members[f'{top}/JPEGImages/{name}.jpg'] = (voc / f'JPEGImages/{name}.jpg').read_bytes()
            members[f'{top}/Annotations/{name}.xml'] = (
                voc / f'Annotations/{name}.xml').read_bytes()
        pack(root / prepare.PARTS['voc'][number].archive, members)
    for split, source in (('train2017', 'train'), ('val2017', 'test')):
        with zipfile.ZipFile(root / f'{split}.zip', 'w') as packed:
            for path in sorted((voc / 'JPEGImages').glob(f'{source}_*')):
                packed.write(path, f'{split}/{path.name}')
    with zipfile.ZipFile(root / 'annotations_trainval2017.zip', 'w') as packed:
        for split, source in (('train2017', 'train'), ('val2017', 'test')):
            packed.write(root / f'set/annotations/instances_{source}.json',
                         f'annotations/instances_{split}.json')
            packed.writestr(f'annotations/captions_{split}.json', '{}')
    return root


@pytest.fixture
def small(originals, monkeypatch):
    """The published table with the checksums of the tiny archives."""
    parts = {kind: tuple(dataclasses.replace(part, md5=hashlib.md5(
        (originals / part.archive).read_bytes()).hexdigest()) for part in known)
        for kind, known in prepare.PARTS.items()}
    monkeypatch.setattr(prepare, 'PARTS', parts)
    return originals


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root):
        self.root, self.asked, self.break_after, self.ranges = root, [], None, True
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}/'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get('Range')
        server.asked.append((self.path, wanted))
        path = server.root / self.path.lstrip('/')
        if not path.is_file():
            return self.send_error(404)
        data, start = path.read_bytes(), 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix('bytes=').rstrip('-'))
            if start >= len(data):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(data)}')
                self.send_header('Content-Length', '0')
                return self.end_headers()
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        else:
            self.send_response(200)
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        if server.break_after is not None:  # hang up in the middle
            self.wfile.write(data[start:start + server.break_after])
            self.wfile.flush()
            return self.connection.close()
        self.wfile.write(data[start:])


@pytest.fixture
def server(originals):
    server = Server(originals)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(server, target, **options):
    name = 'VOCtrainval_06-Nov-2007.tar'
    download.fetch(server.url + name, target, progress=False, wait=0.01, **options)
    return (server.root / name).read_bytes()


def test_a_download_is_whole_and_leaves_no_part(server, tmp_path):
    wanted = fetch(server, tmp_path / 'a.tar')
    assert (tmp_path / 'a.tar').read_bytes() == wanted
    assert [p.name for p in tmp_path.iterdir()] == ['a.tar']


def test_an_interrupted_download_continues_where_it_stopped(server, tmp_path):
    server.break_after = 5000
    with pytest.raises(download.Unreachable, match='connection ended|ncomplete'):
        fetch(server, tmp_path / 'a.tar', tries=2)
    part = tmp_path / 'a.tar.part'
    assert part.stat().st_size == 10000 and not (tmp_path / 'a.tar').exists()
    server.break_after = None
    assert fetch(server, tmp_path / 'a.tar') == (tmp_path / 'a.tar').read_bytes()
    assert [wanted for _, wanted in server.asked] == [None, 'bytes=5000-', 'bytes=10000-']


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    (tmp_path / 'a.tar.part').write_bytes(b'x' * 100)
    server.ranges = False
    assert fetch(server, tmp_path / 'a.tar') == (tmp_path / 'a.tar').read_bytes()


def test_a_complete_part_is_taken_and_an_overlong_one_is_fetched_again(server, tmp_path):
    data = (server.root / 'VOCtrainval_06-Nov-2007.tar').read_bytes()
    for content in (data, data + b'more'):
        (tmp_path / 'a.tar.part').write_bytes(content)
        fetch(server, tmp_path / 'a.tar')
        assert (tmp_path / 'a.tar').read_bytes() == data


def test_a_wrong_checksum_removes_the_file_and_says_so(server, tmp_path):
    with pytest.raises(UserError, match='md5'):
        fetch(server, tmp_path / 'a.tar', md5='0' * 32)
    assert list(tmp_path.iterdir()) == []


def test_other_schemes_than_http_are_refused(tmp_path):
    with pytest.raises(UserError, match='http'):
        download.fetch('file:///etc/passwd', tmp_path / 'x')


def check_voc(folder):
    for year, split, count in ((2007, 'trainval', 4), (2007, 'test', 2), (2012, 'trainval', 4)):
        names = (folder / f'VOC{year}/ImageSets/Main/{split}.txt').read_text().split()
        assert len(names) == count
        for name in names:
            assert (folder / f'VOC{year}/JPEGImages/{name}.jpg').is_file()
            assert (folder / f'VOC{year}/Annotations/{name}.xml').is_file()
    assert not list(folder.rglob('SegmentationClass'))
    assert not [p for p in folder.iterdir() if p.name.startswith('.')]


def test_voc_comes_from_the_network_and_a_second_run_asks_nothing(small, server, tmp_path):
    said = []
    for _ in range(2):
        folder = prepare.prepare('voc', tmp_path, mirror=server.url, say=said.append,
                                 progress=False)
        check_voc(folder)
    assert len(server.asked) == 3
    assert sum('already in' in line for line in said) == 3
    assert any('4 images; the published set has 5011' in line for line in said)


def test_voc_comes_from_archives_that_stay_as_they_are(small, tmp_path):
    before = {p: p.read_bytes() for p in small.glob('*.tar')}
    check_voc(prepare.prepare('voc', tmp_path, sources=[small], progress=False))
    assert {p: p.read_bytes() for p in small.glob('*.tar')} == before


def test_voc_comes_from_an_unpacked_folder(small, tmp_path):
    first = prepare.prepare('voc', tmp_path / 'a', sources=sorted(small.glob('*.tar')),
                            progress=False)
    for number, given in enumerate((first, first.parent)):
        check_voc(prepare.prepare('voc', tmp_path / f'b{number}', sources=[given],
                                  progress=False))
    one = prepare.prepare('voc', tmp_path / 'c', sources=[first / 'VOC2012'], progress=False)
    assert (one / 'VOC2012').is_dir() and not (one / 'VOC2007').exists()


def test_trainval_and_test_may_come_one_after_the_other(small, tmp_path):
    said = []
    for name in ('VOCtest_06-Nov-2007.tar', 'VOCtrainval_06-Nov-2007.tar',
                 'VOCtrainval_11-May-2012.tar'):
        folder = prepare.prepare('voc', tmp_path, sources=[small / name], say=said.append,
                                 progress=False)
    check_voc(folder)
    assert any('not there yet' in line for line in said)


@pytest.mark.parametrize('how', ['archives', 'network', 'folder'])
def test_coco_is_brought_into_place(small, server, tmp_path, how):
    options = dict(progress=False)
    if how == 'network':
        options['mirror'] = server.url
    elif how == 'archives':
        options['sources'] = [small]
    else:
        options['sources'] = [prepare.prepare('coco', tmp_path / 'a', sources=[small],
                                              progress=False)]
    folder = prepare.prepare('coco', tmp_path / 'b', **options)
    assert len(list((folder / 'train2017').iterdir())) == 4
    assert len(list((folder / 'val2017').iterdir())) == 2
    assert sorted(p.name for p in (folder / 'annotations').iterdir()) == [
        'instances_train2017.json', 'instances_val2017.json']
    assert len(json.loads((folder / 'annotations/instances_val2017.json').read_text())[
        'images']) == 2


def test_without_network_one_message_names_every_file_and_what_to_do(tmp_path):
    with pytest.raises(UserError) as error:
        prepare.prepare('voc', tmp_path, mirror='http://127.0.0.1:1/', progress=False)
    message = str(error.value)
    for part in prepare.PARTS['voc']:
        assert part.archive in message and part.md5 in message and part.url in message
    assert 'no network' in message and '--from' in message and 'downloads' in message


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(download.time, 'sleep', lambda _: None)


def test_a_file_the_server_lacks_does_not_stop_the_others(small, server, tmp_path, monkeypatch):
    parts = list(prepare.PARTS['voc'])
    parts[0] = dataclasses.replace(parts[0], archive='gone.tar')
    monkeypatch.setattr(prepare, 'PARTS', dict(voc=tuple(parts)))
    with pytest.raises(UserError, match='404'):
        prepare.prepare('voc', tmp_path, mirror=server.url, progress=False)
    assert (tmp_path / 'VOCdevkit/VOC2007/ImageSets/Main/test.txt').is_file()


def test_a_damaged_archive_of_the_user_is_refused_but_can_be_insisted_on(originals, tmp_path):
    archive = originals / 'VOCtest_06-Nov-2007.tar'
    with pytest.raises(UserError, match='md5.*--no-checksum'):
        prepare.prepare('voc', tmp_path, sources=[archive], progress=False)
    prepare.prepare('voc', tmp_path, sources=[archive], checksum=False, progress=False)


def test_paths_that_hold_nothing_known_are_user_errors(tmp_path):
    (tmp_path / 'x.tar').write_bytes(b'')
    for path in (tmp_path / 'x.tar', tmp_path, tmp_path / 'none'):
        with pytest.raises(UserError, match='--from'):
            prepare.prepare('voc', tmp_path / 'out', sources=[path], progress=False)
    with pytest.raises(UserError, match='no such part'):
        prepare.prepare('voc', tmp_path, only=['2013'], progress=False)


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE = {
    'parent': {'../../escaped.txt': b'x'},
    'absolute': {'/tmp/escaped.txt': b'x'},
    'windows': {'..\\escaped.txt': b'x'},
    'symlink': {'a': link('a', '/etc', tarfile.SYMTYPE)},
    'hardlink': {'a': link('a', '/etc/passwd', tarfile.LNKTYPE)},
    'device': {'a': link('a', '', tarfile.CHRTYPE)},
    'fifo': {'a': link('a', '', tarfile.FIFOTYPE)},
}


@pytest.mark.parametrize('title', sorted(HOSTILE))
def test_hostile_tar_members_are_refused(tmp_path, title):
    archive = pack(tmp_path / 'a.tar', {'fine.txt': b'fine', **HOSTILE[title]})
    (tmp_path / 'deep/out').mkdir(parents=True)
    with pytest.raises(UserError, match='not trusted'):
        archives.extract(archive, tmp_path / 'deep/out', lambda name: name, progress=False)
    assert not list(tmp_path.rglob('escaped*'))


def test_hostile_zip_members_are_refused_before_anything_is_written(tmp_path):
    for name, mode in (('../escaped.txt', 0o100644), ('link', 0o120777)):
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as packed:
            packed.writestr('fine.txt', 'fine')
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, '/etc')
        (tmp_path / 'out').mkdir(exist_ok=True)
        with pytest.raises(UserError, match='not trusted'):
            archives.extract(tmp_path / 'a.zip', tmp_path / 'out', lambda name: name,
                             progress=False)
        assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize('limit', [dict(max_bytes=100), dict(max_files=1)])
def test_archives_that_grow_too_large_are_refused(tmp_path, limit):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as packed:
        packed.writestr('a', b'\0' * 1000)
        packed.writestr('b', b'\0' * 1000)
    with pytest.raises(UserError, match='more than'):
        archives.extract(tmp_path / 'a.zip', tmp_path / 'out', lambda name: name, progress=False,
                         **limit)


@pytest.mark.parametrize('name', ['a.tar', 'a.zip'])
def test_a_cut_archive_is_a_user_error_and_leaves_nothing_in_place(small, tmp_path, name):
    part = prepare.PARTS['voc'][1] if name == 'a.tar' else prepare.PARTS['coco'][1]
    data = (small / part.archive).read_bytes()
    (tmp_path / part.archive).write_bytes(data[:len(data) // 2])
    kind = 'voc' if name == 'a.tar' else 'coco'
    with pytest.raises(UserError, match='cannot be unpacked|ends inside|does not contain'):
        prepare.prepare(kind, tmp_path / 'out', sources=[tmp_path / part.archive],
                        checksum=False, progress=False)
    final = tmp_path / 'out' / prepare.FOLDERS[kind]
    assert not final.exists() or not list(final.iterdir())


def test_an_archive_of_the_right_name_with_other_contents_is_a_user_error(tmp_path):
    pack(tmp_path / 'VOCtest_06-Nov-2007.tar', {'holiday/beach.jpg': b'x'})
    with pytest.raises(UserError, match='right archive'):
        prepare.prepare('voc', tmp_path / 'out', sources=[tmp_path], checksum=False,
                        progress=False)


def test_preparing_again_after_a_failure_in_the_middle_succeeds(small, tmp_path, monkeypatch):
    real = shutil.copyfile
    moved = []

    def fail(*_):
        moved.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, '_move', fail)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare('voc', tmp_path, sources=[small], progress=False)
    monkeypatch.undo()
    assert moved and real is shutil.copyfile
    check_voc(prepare.prepare('voc', tmp_path, sources=[small], checksum=False, progress=False))
