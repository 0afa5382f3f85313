"""A contestant that does as it is told, for the tests of the pipe to one."""

import os
import sys
import time

from segzoo.errors import SegzooError


class Told:
    """Its methods are the ways in which a contestant can answer."""

    def __init__(self):
        print("made")

    def double(self, number):
        print("a library talks on standard output")
        return 2 * number

    def environment(self, name):
        return os.environ.get(name)

    def needs(self, package):
        __import__(package)

    def refuse(self):
        raise SegzooError("no C++ compiler; found no g++")

    def fail(self):
        raise RuntimeError("out of memory\nand much more")

    def die(self):
        sys.stderr.write("first\nthe last words\n")
        sys.stderr.flush()
        os._exit(3)

    def sleep(self, seconds):
        time.sleep(seconds)
