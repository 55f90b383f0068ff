"""What `fuzz_readers.py` does to sound inputs: functions of (random numbers, content, kind of content)."""
import json
import random
import re
import struct
import zlib

LIMIT = 1 << 18  # bytes of an input
NUMBERS = [
    'nan', 'inf', '-inf', 'NaN', 'Infinity', '-Infinity', '0', '-0', '-1', '1', '2', '5', '27', '28', '29',
    '0.5', '1.5', '1e2', '1e-320', '16777216', '2147483648', '-2147483649', '4294967296',
    '18446744073709551616', '1e16', '1e300', '1e308', '-1e308', '1e999', '9' * 40, '9' * 400, '9' * 4300,
    '9' * 5000, '0x1c', '1_0', '\u0663', '', ' 7 ', '1,5', 'left', 'None', 'true', '28.0', '+3', '1e', '--1'
]
NAMES = [
    '', '.', '..', '../../x', '/etc/passwd', 'C:\\x', '\\\\host\\x', 'a/../b', 'a/b', 'a', 'A', 'a.jpg', 'b',
    'x' * 250, 'x' * 5000, '/'.join('y' * 3000), ' a', 'a ', 'a b', '\t', '\ufeffa', 'a\r', '\0', 'a\0b',
    '\x1b[2J', '\u202ea', '\u2028', '\x85', '\xe9', 'disc', 'Disc', 'di-sc', 'dis c', '%s', '{0}', '~', '-',
    '*', 'nul'
]
XML = [
    '<!DOCTYPE a>', '<!DOCTYPE a [<!ENTITY b "c">]>', '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    '<!ENTITY b "c">', '&b;', '&amp;', '&#0;', '&#65;', '&#x10FFFF;', '&#xD800;', '<![CDATA[', ']]>', '<!--',
    '-->', '<?xml version="1.0" encoding="utf-16"?>', '<?xml version="1.0" encoding="latin-1"?>',
    '<?xml version="1.1" encoding="rot13"?>', '<?xml version="1.0" encoding="idna"?>', '<?a b?>', '<a>',
    '</a>', '<a/>', '<object>', '</object>', '<object/>', '<bndbox/>', '<bndbox>', '</bndbox>', '<size/>',
    '<name/>', '<name>star</name>', '<difficult/>', '<difficult>2</difficult>', '<part><name>x</name></part>',
    '<annotation>', '</annotation>', ' xmlns="x"', ' a="b"', ' a="b" a="c"', '<x:a xmlns:x="y"/>', '\0',
    '\x0c', '\ufeff', '\uffff', '\ud83d'
]
JSON = [
    '[', ']', '{', '}', ',', ':', '"', '\\', '\\u0000', '\\ud800', '\\udfff', 'null', 'true', '""', '[]',
    '{}', '"id": 1,', '"images": [],', '"bbox": [1, 2, 3, 4],', '//', '\ufeff', "'", 'NaN', '1e', '"\\x"'
]
ENCODINGS = ['utf-16', 'utf-16-le', 'utf-32', 'utf-8-sig', 'latin-1', 'cp037', 'utf-7', 'shift-jis', 'rot13']


def place(r, data):
    start = r.randrange(len(data) + 1)
    return start, min(len(data), start + r.choice((1, 2, 4, 16, 64, 512)))


def flip(r, data, kind):
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 8)) if out else 0):
        out[r.randrange(min(len(out), r.choice((32, 512, len(out)))))] ^= 1 << r.randrange(8)
    return bytes(out)


def overwrite(r, data, kind):
    number = r.choice(
        (0, 1, -1, 127, 255, 32767, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, r.getrandbits(32)))
    new = struct.pack(r.choice('<>') + 'q', number)
    new = new[-r.choice((1, 2, 4, 8)):] if r.random() < 0.5 else new[:r.choice((1, 2, 4, 8))]
    start = r.randrange(min(len(data), r.choice((64, 600, 1 << 30))) + 1)
    return data[:start] + new + data[start + len(new):]


def remove(r, data, kind):
    start, end = place(r, data)
    return data[:start] + data[end:]


def truncate(r, data, kind):
    return data[:r.randrange(len(data) + 1)]


def repeat(r, data, kind):
    start, end = place(r, data)
    return data[:start] + data[start:end] * r.choice((2, 3, 50, 1000, 20000)) + data[end:]


def token(r, data, kind):
    words = dict(xml=XML + NUMBERS, json=JSON + NUMBERS, list=NAMES).get(kind, NAMES)
    start, end = place(r, data)
    new = r.choice(words).encode('utf-8', 'surrogatepass')
    return data[:start] + new + data[start if r.random() < 0.7 else end:]


def number(r, data, kind):
    """Another number in place of one that is written out."""
    found = list(re.finditer(rb'-?\d+(\.\d+)?', data))
    return put(data, r.choice(found).span(), r.choice(NUMBERS)) if found else data


def put(data, span, text):
    return data[:span[0]] + text.encode('utf-8', 'surrogatepass') + data[span[1]:]


def element(r, data, kind):
    """An XML element removed, doubled, emptied or given another text or place."""
    found = list(re.finditer(rb'<(\w+)>(.*?)</\1>', data[:5000], re.DOTALL))
    found += [inner for one in found for inner in re.finditer(rb'<(\w+)>([^<]*)</\1>', one[0])]
    if not found:
        return data
    one = r.choice(found)
    new = r.choice((b'', one[0] * 2, b'<%s/>' % one[1],
                    b'<%s>%s</%s>' % (one[1], r.choice(NUMBERS + NAMES).replace('\0', '').encode(), one[1]),
                    b'<x>%s</x>' % one[0], r.choice(found)[0]))
    return data.replace(one[0], new, 1)


def between(r, data, kind):
    """Something before an XML element, where a parser still takes it, or before them all."""
    spots = [0, *(match.start() for match in re.finditer(rb'<', data[:5000]))]
    return put(data, (r.choice(spots[:2] if r.random() < 0.3 else spots),) * 2, r.choice(XML))


def nest(r, data, kind):
    deep = r.choice((3, 100, 450, 900, 980, 5000, 100000))
    opened, closed = r.choice((('<a>', '</a>'), ('<object>', '</object>')) if kind == 'xml' else
                              (('[', ']'), ('{"a":', '}')))
    inner = '1' if kind == 'json' else ''
    text = opened * deep + inner + closed * deep * (r.random() < 0.9)
    spots = [match.span() for match in re.finditer(rb'"[^"]*"(?!:)|\b\d+\b', data)] if kind == 'json' else \
        [(match.end(),) * 2 for match in re.finditer(rb'<(annotation|object|size|name|bndbox)>', data)]
    return put(data, r.choice(spots or [(0, 0)]), text)


def encode(r, data, kind):
    try:
        text = data.decode()
        if r.random() < 0.1:
            return data.decode('latin-1').encode()
        return text.encode(r.choice(ENCODINGS), 'surrogatepass')
    except (UnicodeError, LookupError):
        return data


def lines(r, data, kind):
    rows = data.split(b'\n')
    rows.insert(r.randrange(len(rows) + 1), r.choice((*NAMES, 'd', 'c')).encode())
    r.shuffle(rows)
    return b'\n'.join(rows)


def value(r, data, kind):
    """Some value of a JSON text replaced, removed, doubled, moved, or given another key."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return data
    nodes = list(containers(whole))
    if not nodes:
        return data
    node = r.choice(nodes)
    where = r.choice(list(node) if isinstance(node, dict) else range(len(node)))
    action = r.randrange(6)
    if action == 0:
        del node[where]
    elif action == 1 and isinstance(node, list):
        node.append(node[where])
    elif action == 2:
        if isinstance(node, dict):
            where = r.choice(('id', 'name', 'bbox', 'ignore', 'segmentation', 'x'))
        node[where] = r.choice(nodes[1:] or nodes) if r.random() < 0.1 else r.choice(NAMES)
    else:
        node[where] = odd(r)
    try:
        return json.dumps(whole).encode()
    except (ValueError, RecursionError):  # a node within itself
        return data


def odd(r):
    return r.choice((None, True, False, [], {}, 0, -1, 1.0, float('nan'), float('inf'), -float('inf'), 1e308,
                     10 ** 400, 1 << 63, 1 << 31, -5, 0.4, '7', [1], [[1, 2, 3, 4]], [1, 2, 3], dict(a=1),
                     dict(counts=[1], size=[1, 1]), [[0, 0, 5, 0, 5, 5]], '\ud800', *NAMES))


def containers(node):
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if inner:
        yield node
    for one in inner:
        yield from containers(one)


def sized(r, data, kind):
    """An image whose header claims another size, checksums and all."""
    width, height = (r.choice((0, 1, 29, 300, 9000, 30000, 65535, 1 << 20, (1 << 31) - 1)) for _ in 'wh')
    if data[:4] == b'\x89PNG':
        head = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
        return data[:12] + head + struct.pack('>I', zlib.crc32(head)) + data[33:]
    if data[:2] == b'BM':
        return data[:18] + struct.pack('<ii', width, r.choice((height, -height))) + data[26:]
    if data[:2] == b'\xff\xd8' and (found := re.search(rb'\xff[\xc0\xc2]..\x08', data, re.DOTALL)):
        return data[:found.end()] + struct.pack('>HH', height & 65535, width & 65535) + data[found.end() + 4:]
    if data[:4] == b'\x59\xa6\x6a\x95':
        return data[:4] + struct.pack('>II', width, height) + data[12:]
    if data[:4] in (b'II*\0', b'MM\0*'):
        order = '<' if data[:1] == b'I' else '>'
        for tag, size in ((256, width), (257, height)):
            at = data.find(struct.pack(order + 'H', tag))
            data = put_bytes(data, at + 8, struct.pack(order + 'I', size)) if at > 0 else data
        return data
    return re.sub(rb'\b28\b', b'%d' % width, re.sub(rb'\b24\b', b'%d' % height, data))


def put_bytes(data, at, new):
    return data[:at] + new + data[at + len(new):]


def chunk(r, data, kind):
    """A PNG chunk with other content and the right checksum; in other formats some bytes."""
    starts, at = [], 8
    while data[:4] == b'\x89PNG' and at + 12 <= len(data):
        starts.append(at)
        at += 12 + int.from_bytes(data[at:at + 4], 'big')
    if not starts:
        return overwrite(r, data, kind)
    at = r.choice(starts)
    length = int.from_bytes(data[at:at + 4], 'big')
    body = data[at + 4:at + 8] + r.choice(
        (flip, overwrite, remove, repeat))(r, data[at + 8:at + 8 + length], kind)
    new = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return data[:at] + new + data[at + 12 + length:]


def member(r, data, kind):
    """A tar header with another field and the right checksum; in a zip some bytes of its directory."""
    heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257:at + 262] == b'ustar']
    if not heads:
        start = data.rfind(b'PK\1\2', 0, r.randrange(len(data) + 1) or None)
        end = min(len(data), max(0, start) + 60)
        return data[:max(0, start)] + flip(r, data[max(0, start):end], kind) + data[end:]
    at = r.choice(heads)
    head = bytearray(data[at:at + 512])
    name = r.choice(NAMES).encode()
    sizes = (b'77777777777', b'-1', b'\x80' + b'\xff' * 11, b'\xff' * 12, b'\x80\0\0\0\x7f' + b'\0' * 7, b'x')
    field, width, new = r.choice((
        (0, 100, name), (0, 100, b'VOCdevkit/VOC2007/' + name), (124, 12, r.choice(sizes)),
        (156, 1, bytes([r.choice(b'0123456789gxLKSNVD\0z')])), (157, 100, name),
        (100, 8, r.choice((b'-1', b'\xff' * 8, b'777'))), (345, 155, b'../..'), (257, 8, b'ustar  \0')))
    head[field:field + width] = new[:width].ljust(width, b'\0')
    head[148:156] = b' ' * 8
    head[148:156] = b'%06o\0 ' % sum(head)
    return data[:at] + bytes(head) + data[at + 512:]


ANY = (flip, overwrite, remove, truncate, repeat, token)
# what leaves the rest of the content as it is, so that readers get to see what was changed
OWN = dict(xml=(number, number, element, element, between, nest, encode), list=(lines, lines, token, encode),
           json=(number, value, value, value, nest, encode), image=(flip, overwrite, sized, chunk),
           archive=(flip, member, member))


def mutate(r: random.Random, data: bytes, kind: str) -> tuple[bytes, str]:
    """A changed input, and the names of the changes."""
    names = []
    for _ in range(r.choice((1, 1, 1, 2, 3, 6))):
        change = r.choice(OWN[kind] if r.random() < 0.8 else ANY)
        names.append(change.__name__)
        data = change(r, data, kind)[:LIMIT]
    return data, '+'.join(names)
