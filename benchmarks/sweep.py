"""Nine trainings by one sweep beside nine starts of the tutorial pipeline: the same work, in turn.

python benchmarks/sweep.py               # about eight minutes on two cores
"""

from compare import timed, tutorial_data


def main() -> None:
    seeds = ",".join(map(str, range(1, 10)))
    with tutorial_data() as folder:
        starts = [timed("benchmarks/tutorial.py", folder) for _ in range(9)]
        seconds, accuracy = timed("train.py", "-m", f"seed={seeds}")
    tutorial = sum(seconds for seconds, _ in starts)
    print(f"nine starts of the tutorial  {tutorial:6.1f} s  test {starts[0][1]:.4f} each")
    print(f"one sweep of nine seeds      {seconds:6.1f} s  test {accuracy:.4f} in the mean")
    print(f"the sweep is {tutorial / seconds:.1f} times faster")


if __name__ == "__main__":
    main()
