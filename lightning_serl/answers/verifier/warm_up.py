r"""Formulas that the worker reads and compares before it serves, so that no request pays for one-time costs.

The first comparison of a kind takes 150 to 280 ms, the second 5 to 50: sympy imports its solvers on first use, and the
LaTeX parser caches parts of its grammar as it parses.
"""

from __future__ import annotations

# Constructs that occur in answers and in lines where responses break off.
FORMULAS = (
    r"\frac{x}{2}+1",
    r"-\frac{3\sqrt{5}}{4} - 2\sqrt[3]{7}",
    r"x = \frac{-b + \sqrt{b^2 - 4ac}}{2a}",
    r"f(x) = x^3 + 2x^2y - 3xy^{2} + 5",
    r"(a + b)(c - d)^2 = a_1 b_{12} + (x-1)(x+1)",
    r"2 \cdot 3 \times 4 + 5(6) = 42",
    r"\left(1, -2\right)",
    r"(-\infty, 3] \cup [5, \infty)",
    r"\{1, 2, 3\}",
    r"x = 2, y = -3",
    r"x^2 + y^2 \le 4",
    r"0 < x \neq \pi",
    r"\begin{pmatrix} 1 & x \\ \frac{1}{2} & 0 \end{pmatrix}",
    r"\left[\begin{array}{cc}1 & 2 \\3 & 4\end{array}\right]",
    r"\begin{bmatrix} -1 \\ 2x \end{bmatrix}",
    r"\sin^2 \theta + \cos(2x) - \tan \alpha",
    r"\log_2 8 + \ln x + e^{2\pi i/3}",
    r"|x - 3| + \lfloor x \rfloor",
    r"\binom{5}{2} \cdot 3!",
    r"90^\circ",
    r"20\%",
    r"3 + 4i",
    r"\sum_{k=1}^{n} k = \frac{n(n+1)}{2}",
    r"a \equiv 2 \pmod{5}",
    r"\text{even}",
    r"\angle ABC = \overline{AB}",
    r"-10/9",
    r"1.25",
    r"f(f(2)) = g(1, 3)",
    r"\frac{(a+b)^2}{c} + \frac{1}{k(k+1)}",
    r"\left(\frac{1}{2}, \frac{\pi}{3}\right)",
    r"u_n = u_{n-1} + 2u_{n-2}",
    r"C_n = \sum_{k=0}^{n-1} C_k C_{n-1-k}",
)

# One pair for each way that math-verify compares.
PAIRS = (
    (r"2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"),
    (r"a=b", r"b=a"),
    (r"x^2=4", r"x=2"),
    (r"x \in [-2,7]", r"-2\le x \le 7"),
    (r"(-\infty,1)\cup(2,\infty)", r"x<1"),
    (r"\sin^2 x+\cos^2 x", r"1"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & x \end{pmatrix}"),
    (r"\{1,2,x\}", r"\{x,2,1\}"),
    (r"\frac{1}{x+1}+\frac{1}{x}", r"\frac{2x+1}{x(x+1)}"),
    (r"a^{n+1}-a^n", r"a^n(a-1)"),
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
    (r"\log_2(3)", r"\frac{\ln 3}{\ln 2}"),
    (r"\frac{\sqrt{3}+i}{2}", r"e^{i\pi/6}"),
    (r"\int_0^1 x dx", r"0.5"),
    (r"S_n = \sum_{k=0}^{n-1} a_k b_{n-k}", r"S_n = \sum_{k=0}^{n-1} b_{n-k} a_k"),
    (r"\log_2(3)", r"x = \log_{3}{(5 - \sqrt{21})} + \frac{1}{2}\log_{3}{(3)}"),
    (r"x=1,y=2", r"(1,2)"),
    (r"20\%", r"0.2"),
    (r"Cannot be determined", r"0"),
)
